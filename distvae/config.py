"""Every setting there is: frozen dataclasses whose defaults are the paper's, YAML, dotted overrides, validation.

The order is: defaults below < the YAML file < ``key=value`` on the command line. What a run used in the end
stands in its ``config.yaml``.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass, replace
from dataclasses import field as plain_field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from distvae.errors import UserError

RULES = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

# What 32 bits hold: torch and numpy refuse more in their own ways.
LARGEST_INT, LARGEST_FLOAT = 2**31 - 1, 1e38


def _no_nul(path: str) -> str:
    if "\0" in path:
        raise PydanticCustomError("path", "no path has a NUL character")
    return path


def _at_home(path: str) -> str:
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise PydanticCustomError("path", "there is no such user, whose home this could be in") from None


Location = Annotated[str, Field(min_length=1), AfterValidator(_no_nul)]
Folder = Annotated[Location, AfterValidator(_at_home)]
Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=LARGEST_INT)]
Positive = Annotated[int, Field(ge=1, le=LARGEST_INT)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST_FLOAT)]
AboveZero = Annotated[float, Field(gt=0, le=LARGEST_FLOAT)]
Probability = Annotated[float, Field(ge=0, lt=1)]
OpenUnit = Annotated[float, Field(gt=0, lt=1)]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: `no` is a word, `2024-02-03` and `12:30` are texts, `1e-3` is a number."""

    yaml_implicit_resolvers = {}  # without PyYAML's own, which are YAML 1.1's

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            # No setting needs one, and what PyYAML's own stumble over is not always a YAMLError (`!!bool x`).
            raise yaml.MarkedYAMLError(None, None, f"tags such as {event.tag} are not read", event.start_mark)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            # Aliases of aliases of lists would unfold without end.
            raise yaml.MarkedYAMLError(None, None, "an alias can only stand for a single value", event.start_mark)
        return node

    def construct_mapping(self, node, deep=False):
        names = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value} stands there twice", key.start_mark)
            names.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


_FLOAT = r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
for _tag, _pattern, _firsts in [
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
]:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _firsts)


class _Dumper(yaml.SafeDumper):
    """Quotes what ``_Loader`` would not read as text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


CAPTIONS = "captions"
SNLI = "stanfordnlp/snli"


@dataclass(frozen=True, config=RULES)
class DataConfig:
    """Which sentences, and how they become ids."""

    # `captions` (built in), `stanfordnlp/snli` (the hub's), a file (text, json, jsonl, csv, tsv, parquet; .gz too, but
    # for parquet), or a folder that holds train.*, valid.* and test.*
    path: Location = CAPTIONS
    # Columns that hold sentences, pooled. Null: `text`, or the hub's `premise` and `hypothesis`.
    columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    # Sentences of more whitespace-separated words are left out (and counted). Null: no limit.
    max_words: Positive | None = None
    # Seeded down-sample per split; for captions, how many to draw. Null: all there are.
    train_size: Positive | None = None
    valid_size: Positive | None = None
    test_size: Positive | None = None
    # Keep each sentence once within its split.
    distinct: bool = False
    # Words seen fewer times in train are unknown …
    min_count: Positive = 2
    # … and fall into classes by their shape, or into one `<unk>`.
    unk: Literal["classes", "single"] = "classes"
    # Chooses the down-sample and draws the captions; apart from the run's seed, so that runs share their data.
    seed: Seed = 0
    # Processes that tokenise. Null: one per CPU core.
    workers: Positive | None = None
    # Where tokenised corpora are kept.
    cache: Location = "~/.cache/distvae"

    @model_validator(mode="after")
    def _captions_are_independent_draws(self):
        if self.path == CAPTIONS and (self.distinct or self.max_words or self.columns):
            raise ValueError(
                "the captions are independent draws whose log p(x) is exact: distinct, max_words and columns do not"
                " apply to data.path=captions"
            )
        return self

    @model_validator(mode="after")
    def _captions_have_their_vocabulary(self):
        if self.path == CAPTIONS and (self.min_count, self.unk) != (type(self).min_count, type(self).unk):
            raise ValueError(
                "the captions' words are known, all of them: min_count and unk do not apply to data.path=captions"
            )
        return self


@dataclass(frozen=True, config=RULES)
class ModelConfig:
    """Sizes of the LSTM-VAE (paper, section 6.2)."""

    embedding_size: Positive = 128
    hidden_size: Positive = 512
    latent_size: Positive = 32
    # All weights start as U(−r, r); embeddings as U(−r', r').
    init_range: AboveZero = 0.01
    embedding_init_range: AboveZero = 0.1
    # On the decoder's input embeddings and on its LSTM's output.
    dropout: Probability = 0.5
    # Share of the decoder's input words replaced by the unknown word.
    word_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, config=RULES)
class OptimizerConfig:
    """The optimizer and its steps."""

    # `sgd`, without momentum, as the paper and Li et al. (2019) train; or `adamw`, which wants a lower learning rate.
    name: Literal["sgd", "adamw"] = "sgd"
    # Of adamw, decoupled from the gradient.
    weight_decay: NotNegative = 0.0
    # Sentences of one optimizer step, over all ranks and accumulation steps.
    batch_size: Positive = 32
    # Micro-batches into which each rank cuts its share of a batch.
    accumulation_steps: Positive = 1
    learning_rate: AboveZero = 0.5
    # Bound on the global norm of the gradient of the mean loss per sentence. Null: none.
    clip_norm: AboveZero | None = 5.0
    # `no` or `bf16`. Null: what the launcher says (`--mixed_precision`).
    mixed_precision: Literal["no", "bf16"] | None = None
    # A step whose loss or gradient is not finite moves no weight. It stops the run, or (`skip`) is left out of the
    # epoch's sums and counted, and the run goes on.
    on_nan: Literal["stop", "skip"] = "stop"

    @model_validator(mode="after")
    def _options_belong_to_the_optimizer(self):
        if self.weight_decay and self.name != "adamw":
            raise ValueError(f"optimizer.weight_decay belongs to adamw, not to {self.name}")
        return self


@dataclass(frozen=True, config=RULES)
class CommunicationConfig:
    """What several processes send one another under data parallelism (DDP); ZeRO and FSDP have their own ways."""

    # How gradients travel: in float32, rounded to bf16, or as PowerSGD's low-rank factors (Vogels et al., 2019).
    compression: Literal["none", "bf16", "powersgd"] = "none"
    # Rank of the factors: higher is more exact, and more to send.
    powersgd_rank: Positive = 4
    # Steps that send whole gradients before PowerSGD sets in.
    powersgd_start: Annotated[int, Field(ge=2, le=LARGEST_INT)] = 1000
    # Local SGD (Stich, 2019): every process steps by its own share of each batch, clipped on its own, and all take the
    # mean of their weights every so many steps. Null: gradients are reduced in every step.
    local_sgd_steps: Positive | None = None
    # Under any engine: minutes without a sign of life from a process after which the run stops and names it. Processes
    # wait for twice as long for each other when they start, and in a collective.
    timeout_minutes: Annotated[float, Field(gt=0, le=1e6)] = 15.0

    @model_validator(mode="after")
    def _options_belong_together(self):
        if self.compression != "none" and self.local_sgd_steps is not None:
            raise ValueError(
                f"communication.compression={self.compression} has nothing to compress under local_sgd_steps, which"
                " sends weights and no gradients"
            )
        for name in ("powersgd_rank", "powersgd_start"):
            if self.compression != "powersgd" and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"communication.{name} belongs to compression powersgd, not to {self.compression}")
        return self


@dataclass(frozen=True, config=RULES)
class StageConfig:
    # 0: no such stage.
    max_epochs: Count = 0


# The policies that read an option of KLConfig, where not all do. Free bits of any form read `target_rate` too.
_READERS = {
    "weight": ("constant", "linear"),
    "anneal_epochs": ("linear", "soft_free_bits"),
    "target_rate": ("soft_free_bits",),
    "threshold": ("soft_free_bits",),
    "multiplier": ("soft_free_bits",),
    "every_steps": ("soft_free_bits",),
}


def _either(one: str, several: str, names: Sequence[str]) -> str:
    return f"{one if len(names) == 1 else several} {' and '.join(names)}"


@dataclass(frozen=True, config=RULES)
class KLConfig:
    """Who sets γ, the weight of the KL term, and what replaces the KL term (paper, section 6.1, Algorithm 1)."""

    policy: Literal["constant", "linear", "soft_free_bits"] = "soft_free_bits"
    # γ of `constant`, and where `linear` ends.
    weight: NotNegative = 1.0
    # `linear` and `soft_free_bits` raise γ by 1/n of its end in each of the first n epochs.
    anneal_epochs: Count = 10
    # λ in nats a sentence, of soft free bits and of free bits.
    target_rate: NotNegative = 4.0
    # β: soft free bits leave γ alone while the KL is within (1 ± β)λ.
    threshold: Probability = 0.05
    # χ: γ is multiplied by 1 + χ or 1 − χ.
    multiplier: OpenUnit = 0.1
    # Soft free bits act every so many steps of an epoch, over the KL since the last time. Null: once an epoch.
    every_steps: Positive | None = None
    free_bits: Literal["none", "dimension", "sentence_dimension", "sentence", "batch"] = "none"

    @property
    def unread(self) -> dict[str, tuple[str, ...]]:
        """Options that the policy and the free bits do not read, and the policies that do."""
        found = {name: readers for name, readers in _READERS.items() if self.policy not in readers}
        if self.free_bits != "none":
            found.pop("target_rate", None)
        return found

    @property
    def rate(self) -> float | None:
        """λ, where the policy or the free bits have one."""
        return None if "target_rate" in self.unread else self.target_rate

    @property
    def autoencoder(self) -> bool:
        """Whether γ is 0 for good."""
        return self.policy in ("constant", "linear") and self.weight == 0

    @property
    def annealing(self) -> int:
        """Epochs for which γ rises, whatever the policy: a constant has none."""
        return 0 if self.policy == "constant" else self.anneal_epochs


@dataclass(frozen=True, config=RULES)
class PlateauConfig:
    """When the validation loss stops improving (paper, section 6.2)."""

    # Epochs in a row without improvement that end in a decay.
    patience: Positive = 2
    # What a decay multiplies the learning rate by.
    decay: OpenUnit = 0.5
    # The stage ends at this decay.
    max_decays: Positive = 5


@dataclass(frozen=True, config=RULES)
class CheckpointConfig:
    """When a run is saved, beside the end of each epoch."""

    # Every so many steps. Null: not by steps.
    every_steps: Positive | None = None
    # Every so many minutes. Null: not by the clock.
    every_minutes: AboveZero | None = 10.0
    # How many checkpoints stay. More than one: a damaged one is passed over for the one before.
    keep: Positive = 2


@dataclass(frozen=True, config=RULES)
class EvaluationConfig:
    # Sentences evaluated at once on a rank, at most; fewer where each has many importance samples.
    batch_size: Positive = 128
    # K of the importance-weighted NLL.
    importance_samples: Positive = 500
    # Bound on what a chunk of importance samples may take, in MiB.
    memory_mb: Positive = 512
    # Seeds the draws of z, in validation too.
    seed: Seed = 0
    # K of an importance-weighted NLL of the VAE at each validation too. 0: none, for it takes K decodings a sentence.
    validation_samples: Count = 0
    # Sentences shown in TensorBoard after each validation.
    samples: Count = 8
    # Of the decoder in importance sampling, where it is nearly all of the work; all other scores are float32. Null: as
    # in the training. A CPU without bfloat16 instructions takes float32.
    mixed_precision: Literal["no", "bf16"] | None = None


@dataclass(frozen=True, config=RULES)
class SpeedConfig:
    """Faster ways to the same numbers, up to rounding. `auto` takes what the machine and the launch have; what each
    brings stands in docs/performance.md."""

    # Output layer and cross entropy. `fused`: the logits turn into their own gradient, a few rows at a time. `plain`:
    # torch's, which keep them and three float32 copies.
    output_layer: Literal["fused", "plain"] = "fused"
    # Gradients of the embeddings. `rows`: of the words of a batch alone, which needs sgd and a process alone on a CPU.
    # `dense`: of the whole vocabulary. `auto`: `rows` where it can be.
    embedding_gradients: Literal["auto", "rows", "dense"] = "auto"
    # On a CPU, keep memory that a step has freed for the next one, and do not hand it back to the system.
    keep_memory: bool = True
    # On a GPU, record the forward and backward of each shape of batch as a CUDA graph and play it again. For a process
    # alone, without accumulation steps.
    cuda_graphs: bool = False


@dataclass(frozen=True, config=RULES)
class Config:
    # The run's folder. Null: runs/ and the config file's path below configs/.
    run: Folder | None = None
    seed: Seed = 0
    # Threads of each process that trains on a CPU. Null: the machine's cores, shared by its processes; launchers, left
    # alone, give each process one.
    cpu_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    # What to do when the run's folder holds a run: `auto` goes on from its newest checkpoint if this config continues
    # it, `never` is an error. Or a checkpoint's folder, to go on from that one, here or in a new run.
    resume: Folder = "auto"
    # A run whose finished pretraining (its folder `pretrained/`) takes the place of this run's.
    pretrained: Folder | None = None
    data: DataConfig = plain_field(default_factory=DataConfig)
    model: ModelConfig = plain_field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = plain_field(default_factory=OptimizerConfig)
    # Stage 1: an autoencoder (γ = 0), whose encoder the next stage keeps and whose decoder it resets.
    pretrain: StageConfig = plain_field(default_factory=lambda: StageConfig(max_epochs=100))
    # Stage 2: the VAE, annealing included.
    train: StageConfig = plain_field(default_factory=lambda: StageConfig(max_epochs=100))
    kl: KLConfig = plain_field(default_factory=KLConfig)
    plateau: PlateauConfig = plain_field(default_factory=PlateauConfig)
    communication: CommunicationConfig = plain_field(default_factory=CommunicationConfig)
    checkpoint: CheckpointConfig = plain_field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = plain_field(default_factory=EvaluationConfig)
    speed: SpeedConfig = plain_field(default_factory=SpeedConfig)

    @model_validator(mode="after")
    def _something_to_do(self):
        if self.pretrain.max_epochs == 0 and self.train.max_epochs == 0:
            raise ValueError("pretrain.max_epochs and train.max_epochs are both 0: there is nothing to train")
        if self.pretrained is not None and self.train.max_epochs == 0:
            raise ValueError("pretrained is given and train.max_epochs is 0: there is nothing to train")
        return self

    @model_validator(mode="after")
    def _no_step_spoils_those_after_it(self):
        if self.communication.compression == "powersgd" and self.optimizer.on_nan == "skip":
            raise ValueError(
                "optimizer.on_nan=skip does not go with communication.compression=powersgd, which carries what it left"
                " out of a step's gradient, finite or not, into the next"
            )
        return self

    @property
    def last_stage(self) -> str:
        """The stage whose weights are the run's."""
        return "train" if self.train.max_epochs else "pretrain"

    @property
    def autoencoder(self) -> bool:
        """Whether the run ends with an autoencoder, whose z has no prior: an NLL says nothing of it."""
        return self.train.max_epochs == 0 or self.kl.autoencoder

    @property
    def unread(self) -> dict[str, str]:
        """Keys that this config's choices do not read, and what reads them. Stages of no epochs read as the others."""
        found = {f"kl.{name}": _either("policy", "policies", readers) for name, readers in self.kl.unread.items()}
        data = self.data
        if data.path != CAPTIONS and data.train_size is data.valid_size is data.test_size is None:
            found["data.seed"] = "data.train_size, data.valid_size or data.test_size"
        if self.pretrained is not None:
            found["pretrain.max_epochs"] = "a run without pretrained"
        return found


# Bytes of a file of YAML.
_LARGEST = 2**24


class ConfigError(UserError):
    """A config that cannot be used; ``run`` is the folder it names, if it gets that far."""

    def __init__(self, message: str, run: str | None = None):
        super().__init__(message)
        self.run = run


def load_config(path: str | Path, overrides: Sequence[str] = (), whole: bool = False, stored: bool = False) -> Config:
    """Read a YAML file, apply ``key=value`` overrides, validate.

    Args:
        path: the YAML file.
        overrides: as ``kl.target_rate=6``; the value is YAML.
        whole: the file must name every section, as one that a run wrote does.
        stored: a run wrote the file, so options that nothing reads are accepted. ``whole`` implies it.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the nearest is named), a value is out of range.
    """
    tree = read_tree(path)
    sections = [name for name, value in vars(Config()).items() if is_dataclass(value)]
    missing = [name for name in sections if name not in tree]
    if whole and missing:
        raise ConfigError(f"{path}: is not the whole config of a run: it lacks {', '.join(missing)}")
    for override in overrides:
        apply_override(tree, override)
    if tree.get("run") is None:
        tree["run"] = run_folder(path)
    return parse_config(tree, str(path), stored or whole)


def read_tree(path: str | Path) -> dict[str, Any]:
    """A YAML file's keys and values, as plain ones.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            # A pipe goes to one process of a run, and may never end.
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
        if path.stat().st_size > _LARGEST:
            raise OSError(errno.EFBIG, f"it has {path.stat().st_size:,} bytes, more than any config")
        tree = _read(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, FileNotFoundError):
            reason += _meant(path)
        raise ConfigError(f"{path}: cannot be read as a config: {reason}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: should hold keys and values, such as `seed: 1`")
    return tree


def _meant(path: Path) -> str:
    """A hint at the configs that a path to none may mean, which lacks its ending or its folder."""
    name = path.name if path.suffix in (".yaml", ".yml") else f"{path.name}.yaml"
    found = [other for other in (path.with_name(name), Path("configs", path.parent, name)) if os.path.isfile(other)]
    found = found[:1] or sorted(other for other in Path("configs").rglob("*.y*ml") if other.name == name)
    return f"; did you mean {' or '.join(map(str, found))}?" if found else ""


def parse_config(tree: dict[str, Any], source: str, stored: bool = False) -> Config:
    """Validate a tree of plain values. ``source`` says in errors where it came from; ``stored`` as in ``load_config``.

    Raises:
        ConfigError: a key is unknown or a value out of range.
    """
    try:
        # By way of JSON, whose strict rules take a mapping for a data class and a list for a tuple, but no text for a
        # number and no `true` for 1.
        config = TypeAdapter(Config).validate_json(json.dumps(tree))
    except ValidationError as error:
        wrong = {problem["loc"][:1] if problem["type"] != "json_invalid" else ("run",) for problem in error.errors()}
        run = None if ("run",) in wrong else tree.get("run")
        raise ConfigError(f"{source}: {explain(error)}", run and _at_home(run)) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: is not made of plain keys and values: {error}") from None
    if not stored:
        _check_read(config, source)
    return config


def _check_read(config: Config, source: str) -> None:
    """See that the policy and the free bits read every KL option that is set.

    Raises:
        ConfigError: they do not.
    """
    for name, readers in config.kl.unread.items():
        value, default = getattr(config.kl, name), getattr(KLConfig, name)
        if value != default:
            raise ConfigError(
                f"{source}: kl.{name} = {value} belongs to {_either('policy', 'policies', readers)}"
                f"{' or to free bits' if name == 'target_rate' else ''}, and kl.policy is {config.kl.policy}: leave it"
                f" out, or set kl.{name}={'null' if default is None else default}, its default",
                config.run,
            )


def with_precision(config: Config, precision: str) -> Config:
    """The config with what the launcher may have set, for a run's folder says what it used.

    Args:
        precision: of the training.
    """
    return replace(
        config,
        optimizer=replace(config.optimizer, mixed_precision=precision),
        evaluation=replace(config.evaluation, mixed_precision=config.evaluation.mixed_precision or precision),
    )


def dump_config(config: Config) -> str:
    """The whole config as YAML, which ``load_config`` reads back."""
    return dump_tree(TypeAdapter(Config).dump_python(config, mode="json"))


def dump_tree(tree: dict[str, Any]) -> str:
    """Plain keys and values as YAML, which ``read_tree`` reads back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value."""
    for key, value in asdict(config).items() if is_dataclass(config) else config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_keys(kind: type, prefix: str = "") -> Iterator[str]:
    """The keys of a data class, dotted, and its sections."""
    for key, hint in get_type_hints(kind).items():
        yield f"{prefix}{key}"
        if is_dataclass(hint):
            yield from known_keys(hint, f"{prefix}{key}.")


def explain(error: ValidationError, kind: type = Config) -> str:
    """Every problem that was found with a data class, in a line."""
    return "; ".join(_explain(problem, kind) for problem in error.errors())


def _read(text: str) -> Any:
    """YAML → plain values.

    Raises:
        yaml.YAMLError, ValueError: it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except OverflowError:
        raise ValueError("it has an escape beyond \\U0010FFFF") from None


def run_folder(path: str | Path) -> str:
    """Where a config's run goes that does not say it: runs/ and the file's path below configs/."""
    return str(Path("runs", *_below_configs(Path(path))))


def _below_configs(path: Path) -> tuple[str, ...]:
    parts = path.with_suffix("").parts
    below = parts[len(parts) - parts[::-1].index("configs") :] if "configs" in parts else ()
    return below or parts[-1:]


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Put a ``key=value`` into a tree of plain values; the value is YAML without comments.

    Raises:
        ConfigError: it is not of this form.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override; write key=value, such as kl.target_rate=6")
    try:
        set_key(tree, key, _read_value(value))
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{override!r}: the value is not YAML; quote it") from None


# What YAML would drop from a value without a word.
_DROPPED = (yaml.AnchorToken, yaml.DirectiveToken, yaml.DocumentStartToken, yaml.DocumentEndToken)


def _read_value(text: str) -> Any:
    """Read an override's value. A `#` in it is text, where YAML would drop it, and what follows it, as a comment.

    Raises:
        yaml.YAMLError, ValueError: it is not a YAML value, or a part of it would be dropped.
    """
    text = text.strip()
    tokens = [token for token in yaml.scan(text, _Loader) if token.end_mark.index > token.start_mark.index]
    first = tokens[0] if tokens else None
    whole = not text or (tokens and first.start_mark.index == 0 and tokens[-1].end_mark.index == len(text))
    if not tokens or (len(tokens) == 1 and isinstance(first, yaml.ScalarToken) and first.plain):
        if len(text.splitlines()) > 1:
            raise ValueError("it has several lines")
        return _read(text) if whole else text
    if not whole or any(isinstance(token, _DROPPED) for token in tokens):
        raise ValueError("a part of it is not read")
    return _read(text)


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Put a value into a tree under its dotted key.

    Raises:
        ConfigError: a part of the key is a single value.
    """
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"'{key}={value}': {parent} is a single value and has no key {last}")
    tree[last] = value


def _explain(problem: dict[str, Any], kind: type) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(key, known_keys(kind), n=1, cutoff=0.5)
        return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")
    if problem["type"] == "json_invalid":  # lone surrogates, nesting
        return f"is not made of plain keys and values: {problem['ctx']['error']}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message
    given = problem["input"]
    if problem["type"] in ("tuple_type", "list_type") and isinstance(given, str | int | float):
        message += f"; a list: write '{key}=[{given}]'"
    return f"{key} = {given!r}: {message[0].lower() + message[1:]}"
