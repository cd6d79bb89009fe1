"""What a generated source came from: the request of a synthesis or a filter, facts of each text, the manifest."""

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from calib_study.errors import InputError, unknown
from calib_study.specs import DType, Frozen, passing, problem, problem_lines

EndOfText = Literal["stop", "continue", "ban"]
DROPPED = ("top", "bottom", "random")  # the ends of the distribution of perplexity that a filter can drop


def check_policy(name: str) -> None:
    """Raise InputError with near matches unless a policy for end-of-text has this name."""
    if name not in get_args(EndOfText):
        raise unknown("end-of-text policy", name, get_args(EndOfText))


def parse_drop(text: str) -> tuple[str, float]:
    """Return what a filter drops: which end of the distribution, and how many per cent of the texts.

    Raises InputError, with near matches for the end.

    >>> parse_drop("top:20")
    ('top', 20.0)
    """
    end, colon, number = text.partition(":")
    if end not in DROPPED:
        raise unknown("end to drop", end, DROPPED)
    try:
        percent = float(number)
    except ValueError:
        percent = 0.0
    if not colon or not 0 < percent < 100:
        raise InputError(f"drop {text!r}: expected an end and a percentage between 0 and 100, like '{end}:20'.")
    return end, percent


class Synthesis(Frozen):
    """A request for text of a model's own: all that decides it but the arithmetic of the machine.

    Text number i continues the first `prefix_len` tokens of the i-th document, in an order drawn from the seed, of
    the calibration part of `prefix_source`. Its random numbers come from the seed and i; so asking for more texts
    adds some and changes none.

    Attributes:
        model_hash: SHA-256 of the model's files, or a hub commit.
        prefix_source, prefix_hash: None if prefixes have no tokens; the hash is of the documents.
        prefix_len: tokens of real text, without `start_token`.
        start_token: the token that the tokenizer puts before a text, or else its end-of-text token, precedes the
            prefix. It is no part of the text.
        new_tokens: tokens that follow the prefix.
        top_k: the k likeliest tokens can be drawn, and their equals; 0 = all.
        top_p: of those, the likeliest whose probabilities before them sum to less than p; 1 = all.
        repetition_penalty: logits of tokens that the text has already are divided by it, negative ones multiplied.
        end_of_text: what happens when end-of-text is drawn: "stop" ends the text, which is then shorter; "continue"
            starts a new document in the same text; "ban": it is never drawn.
    """

    kind: Literal["synthesis"] = "synthesis"
    model: str
    model_hash: str | None = None
    dtype: DType = "float32"
    prefix_len: int = Field(default=2, ge=0)
    prefix_source: str | None = None
    prefix_hash: str | None = None
    start_token: bool = True
    n_texts: int = Field(ge=1)
    new_tokens: int = Field(ge=1)
    temperature: float = Field(default=0.6, gt=0)
    top_k: int = Field(default=50, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    repetition_penalty: float = Field(default=1.2, gt=0)
    end_of_text: EndOfText = "stop"
    seed: int = Field(default=0, ge=0)

    @field_validator("prefix_source")
    @classmethod
    def _where_prefixes_come_from(cls, source: str | None, info: ValidationInfo) -> str | None:
        length = info.data.get("prefix_len")
        if length and source is None:
            raise problem(f"prefixes of {length} tokens need a source; or ask for prefix_len 0.")
        if length == 0 and source is not None:
            raise problem("prefixes of 0 tokens come from no source; leave it out.")
        return source

    @field_validator("start_token")
    @classmethod
    def _something_to_continue(cls, start_token: bool, info: ValidationInfo) -> bool:
        if not start_token and info.data.get("prefix_len") == 0:
            raise problem("a text without a prefix has to begin with the start token.")
        return start_token

    @field_validator("end_of_text", mode="before")
    @classmethod
    def _known_policy(cls, policy: Any) -> Any:
        try:
            check_policy(str(policy))
        except InputError as error:
            raise problem(str(error)) from error
        return policy

    @property
    def origin(self) -> str:
        """What it says of itself in a list of sources."""
        where = f"{self.prefix_len} tokens of {self.prefix_source}" if self.prefix_source else "nothing"
        return f"text that {self.model} wrote after {where}"


class Filter(Frozen):
    """A request for those texts of a source that are left when one end of their perplexities is dropped.

    Attributes:
        drop: "top:20" keeps what is strictly below the 80th percentile, "bottom:20" what is strictly above the 20th;
            "random:20" drops as many as "top:20" would if no two were equal, drawn from the seed.
        scorer: the model whose perplexities they are; None = those of the parent's manifest.
        max_tokens: a text is scored up to so many tokens; None without a scorer.
    """

    kind: Literal["filter"] = "filter"
    parent: str
    parent_hash: str
    drop: Annotated[str, passing(parse_drop)]
    seed: int = Field(default=0, ge=0)
    scorer: str | None = None
    scorer_hash: str | None = None
    dtype: DType | None = None
    max_tokens: int | None = Field(default=None, ge=2)

    @property
    def origin(self) -> str:
        """What it says of itself in a list of sources."""
        end, percent = parse_drop(self.drop)
        return f"{self.parent} without {percent:g} % of its texts ({end if end == 'random' else f'{end} perplexities'})"


Requested = TypeVar("Requested", Synthesis, Filter)
Request = Annotated[Synthesis | Filter, Field(discriminator="kind")]


class TextFacts(Frozen):
    """What is known of one text.

    Attributes:
        index: its number in the synthesis, or that of the document in a source that was filtered.
        perplexity: exp of the mean of -ln p over `n_scored` tokens, by the generator itself as it wrote (at
            temperature 1, prefix included, start token not), or by the filter's scorer; None if n_scored is 0.
        n_tokens: of prefix and continuation.
        ends: how often end-of-text was drawn.
        repeated: share of the text's 4-grams of tokens that it has had before.
        margin: how far rounding would have to move a sum of probabilities to change the text.
    """

    index: int
    n_scored: int
    perplexity: float | None = None
    n_tokens: int | None = None
    ends: int | None = None
    repeated: float | None = None
    margin: float | None = None


class Manifest(Frozen):
    """What a generated source is: the request, the texts' facts in the order of the documents, and where it was made.

    Attributes:
        parents: requests of the generated sources it was filtered from, the nearest first.
        counts: of texts: asked, kept, in which end-of-text was drawn, left out as empty, broken or repeated.
        weights_sha256: of the model that wrote or scored; None where no model was needed.
        threshold: the perplexity at which a filter cut.
    """

    model_config = ConfigDict(strict=True)
    format: Literal[1] = 1
    request: Request
    parents: tuple[Request, ...] = ()
    documents_sha256: str
    counts: dict[str, int]
    weights_sha256: str | None = None
    threshold: float | None = None
    texts: tuple[TextFacts, ...]
    environment: dict[str, Any]
    finished: str


def checked_request(kind: type[Requested], **fields: Any) -> Requested:
    """Return a request. Raises InputError listing every problem, with near matches for a parameter's name."""
    known = kind.model_fields
    problems = [f"  - {unknown('parameter', name, known)}" for name in fields if name not in known]
    try:
        request = kind.model_validate({name: value for name, value in fields.items() if name in known})
    except ValidationError as error:
        problems.append(problem_lines(error))
    if problems:
        raise InputError(f"bad request of a {kind.__name__.lower()}:\n" + "\n".join(problems))
    return request
