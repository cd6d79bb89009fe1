"""Options that several commands of the command line have."""

import click

model_option = click.option(
    "--model", default="smollm2-135m", show_default=True, help="Name, directory, GGUF file or hub id."
)
dtype_option = click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or auto.")
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps ...")
remote_code_option = click.option(
    "--remote-code", is_flag=True, help="Run the Python code that the model brings. Read it first."
)
