"""Every setting of a training run, as frozen dataclasses. The defaults are the paper's."""

from __future__ import annotations

from dataclasses import field as plain_field
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from distvae.config.communication import CommunicationConfig, PowerSGD
from distvae.config.keys import flatten, unread_options
from distvae.config.kl import KLConfig
from distvae.config.sections import Section
from distvae.methods.annealing import Constant
from distvae.methods.lagging import Aggressive, Joint
from distvae.methods.posteriors import BatchNormPosterior, DUPosterior, GaussianPosterior
from distvae.system.roles import Role
from distvae.system.settings import (
    RULES,
    AboveZero,
    Count,
    Folder,
    Location,
    Name,
    NotNegative,
    OpenUnit,
    Positive,
    Probability,
    Seed,
)
from distvae.tokenization import TokenizerOptions
from distvae.tokenization.words import Words

CAPTIONS = "captions"
SNLI = "stanfordnlp/snli"
# What applies to the sentences of files and of the hub only.
_NOT_OF_CAPTIONS = (
    "distinct", "max_words", "columns", "subset", "revision", "split", "label", "group", "disjoint",
)  # fmt: skip

Precision = Literal["no", "bf16"]
Pooling = Literal["last", "mean", "max"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Threads = Annotated[int, Field(ge=1, le=1024)]


@dataclass(frozen=True, config=RULES)
class DataConfig(Section):
    """Which sentences to use, and how they become ids."""

    # `captions` (built in), a dataset of the hub (ORG/NAME), a file (text, json, jsonl, csv, tsv, parquet, arrow; text
    # files also as .gz, .zst or .xz), several files ('logs/*.jsonl'), a folder with train.*, valid.* and test.*, a
    # folder that `save_to_disk` wrote, or `-`, standard input.
    path: Annotated[Location, Role.SOURCE, Role.PER_PROCESS] = CAPTIONS
    # Of the hub: one of the dataset's subsets, if it has several.
    subset: Name | None = None
    # Of the hub: a branch, a tag or a commit. Null: the newest commit; a run keeps the one that it began with.
    revision: Annotated[Name | None, Role.SOURCE] = None
    # Of the hub or `save_to_disk`: which splits are train, valid and test; a missing one is cut from train. Null: by
    # their names.
    split: Annotated[tuple[Name | None, ...], Field(min_length=1, max_length=3, strict=False)] | None = None
    # Columns of sentences, pooled. Null: `text`, or SNLI's `premise` and `hypothesis`.
    columns: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] | None = None
    # Columns of labels: kept beside the sentences, and never seen by the model. A text file has lines `label<TAB>text`.
    label: Name | Annotated[tuple[Name, ...], Field(min_length=1, strict=False)] | None = None
    # Column of groups, such as documents or authors: sentences of one are in one split. For splits that are cut.
    group: Name | None = None
    # Drop sentences of train that are in valid or test, and of valid that are in test.
    disjoint: bool = False
    # Leave out (and count) sentences of more whitespace-separated words. Null: no limit.
    max_words: Positive | None = None
    # Sentences to sample from each split; for captions, sentences to draw. Null: all there are.
    train_size: Positive | None = None
    # The same for valid.
    valid_size: Positive | None = None
    # The same for test.
    test_size: Positive | None = None
    # Keep each sentence once within its split.
    distinct: bool = False
    # How sentences become tokens. `treebank` is that of older versions.
    tokenizer: TokenizerOptions = Words()
    # Sentences per shard. A corpus of more than 16 shards is prepared, opened and shuffled shard by shard, so that its
    # size does not matter. For data without `label` and `group`.
    shard_size: Positive = 524_288
    # Seed of the sample and of the captions. It is not the run's seed, so that runs share their data.
    seed: Seed = 0
    # Processes that tokenize. Null: one per CPU core.
    workers: Annotated[Positive | None, Role.PLACE, Role.PER_PROCESS] = None
    # Folder of tokenized corpora.
    cache: Annotated[Location, Role.PLACE] = "~/.cache/distvae"

    @model_validator(mode="after")
    def _captions_are_independent_draws(self) -> DataConfig:
        given = [name for name in _NOT_OF_CAPTIONS if getattr(self, name)]
        if self.path == CAPTIONS and given:
            raise ValueError(
                f"{' and '.join(given)}: not for data.path=captions: captions are independent draws whose log p(x) is"
                " exact"
            )
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns of labels."""
        return (self.label,) if isinstance(self.label, str) else self.label or ()

    @model_validator(mode="after")
    def _captions_have_their_vocabulary(self) -> DataConfig:
        if self.path == CAPTIONS and self.tokenizer != Words():
            raise ValueError("tokenizer, min_count and unk do not apply to data.path=captions, whose words are known")
        return self


@dataclass(frozen=True, config=RULES)
class ModelConfig(Section):
    """Sizes of the LSTM-VAE (paper, section 6.2), and its posterior."""

    # Dimensions of the word embeddings of the encoder and of the decoder.
    embedding_size: Positive = 128
    # Dimensions of the state of each LSTM.
    hidden_size: Positive = 512
    # Dimensions of z. 0: no latent variable, so the model is an LSTM language model.
    latent_size: Count = 32
    # What the encoder's LSTM gives the posterior: its last hidden state, or the mean or maximum of each dimension over
    # the hidden states of the sentence.
    pooling: Pooling = "last"
    # The form of the posterior q(z|x).
    posterior: Annotated[GaussianPosterior | BatchNormPosterior | DUPosterior, Field(discriminator="name")] = (
        GaussianPosterior()
    )
    # r: all weights but embeddings are drawn from U(−r, r).
    init_range: AboveZero = 0.01
    # r: embeddings are drawn from U(−r, r).
    embedding_init_range: AboveZero = 0.1
    # Dropout of the decoder's input embeddings and of its LSTM's output.
    dropout: Annotated[Probability, Role.MUTABLE] = 0.5
    # Share of the decoder's input words that the unknown word replaces.
    word_dropout: Annotated[float, Field(ge=0, le=1), Role.MUTABLE] = 0.0


@dataclass(frozen=True, config=RULES)
class SGD:
    """Without momentum, as the paper and Li et al. (2019) train."""

    name: Literal["sgd"] = "sgd"


@dataclass(frozen=True, config=RULES)
class AdamW:
    """Needs a lower learning rate than SGD (Loshchilov & Hutter, 2019)."""

    name: Literal["adamw"] = "adamw"
    # Decoupled weight decay.
    weight_decay: Annotated[NotNegative, Role.MUTABLE] = 0.0
    # Steps in which the learning rate rises evenly to its value, whenever the moments have been reset. Without them the
    # first steps can saturate the encoder, whose last state is then the same for all sentences.
    warmup_steps: Annotated[Count, Role.MUTABLE] = 300


@dataclass(frozen=True, config=RULES)
class OptimizerConfig(Section):
    """The optimizer and its steps."""

    # The rule that updates the weights.
    algorithm: Annotated[SGD | AdamW, Field(discriminator="name", alias="name")] = SGD()
    # Sentences of one optimizer step, over all ranks and accumulation steps.
    batch_size: Positive = 32
    # Micro-batches of each rank in a step.
    accumulation_steps: Annotated[Positive, Role.PLACE] = 1
    # Learning rate, which the plateau rule lowers.
    learning_rate: Annotated[AboveZero, Role.MUTABLE] = 0.5
    # Largest global norm of the gradient of the mean loss per sentence; larger ones are scaled down. Null: no limit.
    clip_norm: Annotated[AboveZero | None, Role.MUTABLE] = 5.0
    # `no` or `bf16`. Null: as the launcher sets it (`--mixed_precision`).
    mixed_precision: Precision | None = None
    # A step whose loss or gradient is not finite changes no weight. `stop`: it ends the run. `skip`: the run continues,
    # and the step is counted and left out of the epoch's sums.
    on_nan: Annotated[Literal["stop", "skip"], Role.EXTENT] = "stop"

    def warm_up(self, step: int) -> float:
        """Return the share of the learning rate at a step, counted from 1 since the moments were reset."""
        if not isinstance(self.algorithm, AdamW) or step >= self.algorithm.warmup_steps:
            return 1.0
        return step / self.algorithm.warmup_steps


@dataclass(frozen=True, config=RULES)
class StageConfig:
    """A stage of training."""

    # Most epochs of the stage. 0: skip it.
    max_epochs: Count = 0


@dataclass(frozen=True, config=RULES)
class InferenceConfig(Section):
    """How the inference network, the encoder, trains beside the decoder."""

    # Which steps move the encoder, and which the decoder.
    training: Annotated[Joint | Aggressive, Field(discriminator="name")] = Joint()


@dataclass(frozen=True, config=RULES)
class PlateauConfig:
    """When the validation loss stops improving (paper, section 6.2)."""

    # Consecutive epochs without improvement before a decay.
    patience: Positive = 2
    # Factor of the learning rate at a decay.
    decay: OpenUnit = 0.5
    # The stage ends at this many decays.
    max_decays: Positive = 5


@dataclass(frozen=True, config=RULES)
class CheckpointConfig:
    """When to save a run, besides the end of each epoch."""

    # Steps between checkpoints. Null: not by steps.
    every_steps: Positive | None = None
    # Minutes between checkpoints. Null: not by time.
    every_minutes: AboveZero | None = 10.0
    # Number of checkpoints to keep. With more than one, a run can resume from the one before a damaged one.
    keep: Positive = 2


@dataclass(frozen=True, config=RULES)
class EvaluationConfig:
    """How validation and the final scores are computed."""

    # Most sentences evaluated at once on a rank. Fewer if each has many importance samples.
    batch_size: Annotated[Positive, Role.PLACE] = 128
    # K of the importance-weighted NLL.
    importance_samples: Annotated[Positive, Role.EXTENT, Role.AFTER_PRETRAINING] = 500
    # Most memory of a chunk of importance samples, in MiB.
    memory_mb: Annotated[Positive, Role.PLACE] = 512
    # Seed of the draws of z, in validation too.
    seed: Seed = 0
    # K of an importance-weighted NLL at each validation of the VAE, which decodes each sentence K times. 0: none.
    validation_samples: Annotated[Count, Role.EXTENT, Role.AFTER_PRETRAINING] = 0
    # Sentences shown in TensorBoard after each validation.
    samples: Annotated[Count, Role.EXTENT, Role.AFTER_PRETRAINING] = 8
    # Precision of the decoder in importance sampling, which is nearly all of the work; all other scores are float32.
    # Null: as in training. A CPU without bfloat16 instructions uses float32.
    mixed_precision: Annotated[Precision | None, Role.AFTER_PRETRAINING] = None


@dataclass(frozen=True, config=RULES)
class SpeedConfig:
    """Faster ways to the same numbers, up to rounding. docs/performance.md has what each of them gains."""

    # Output layer and cross entropy. `fused`: compute the gradient in place of the logits, a few rows at a time.
    # `plain`: torch's, which keeps the logits and three float32 copies of them.
    output_layer: Literal["fused", "plain"] = "fused"
    # Gradients of the embeddings. `rows`: of the words in a batch only; needs sgd and a single process on a CPU.
    # `dense`: of the whole vocabulary. `auto`: `rows` where possible.
    embedding_gradients: Literal["auto", "rows", "dense"] = "auto"
    # On a CPU, keep memory that a step has freed for the next step.
    keep_memory: bool = True
    # On a GPU, record the forward and backward of each batch shape as a CUDA graph and replay it. For a single process
    # without accumulation steps.
    cuda_graphs: bool = False


@dataclass(frozen=True, config=RULES)
class TrackingConfig(Section):
    """Where to show a run as it trains, beside metrics.jsonl, the console and TensorBoard."""

    # Libraries that also show the run: `wandb`, `mlflow`, `trackio`, from the extra `tracking`. Their own environment
    # variables set where they store runs, and whether they are offline. `tensorboard` is always on.
    trackers: Annotated[tuple[TrackerName, ...], Field(alias="with", strict=False)] = ()
    # Project in these libraries (MLflow: experiment). The run has the name of its folder.
    project: Name = "distvae"


# What a language model, which has no latent variable, has to set.
_LANGUAGE_MODEL = {
    "model.pooling": "last",
    "model.posterior": "gaussian",
    "pretrain.max_epochs": 0,
    "inference.training": "joint",
    **{f"kl.{key}": value for key, value in KLConfig(policy=Constant()).flat().items()},
}

# What only a model with a latent variable reads.
_OF_THE_LATENT_VARIABLE = (
    "pretrained", *_LANGUAGE_MODEL, "evaluation.importance_samples", "evaluation.validation_samples",
    "evaluation.seed", "evaluation.mixed_precision",
)  # fmt: skip


@dataclass(frozen=True, config=RULES)
class Config:
    """A training run."""

    # The run folder. Null: runs/ and the config file's path below configs/.
    run: Annotated[Folder | None, Role.PLACE] = None
    # Seed of the initial weights, the order of sentences, dropout and the draws of z in training.
    seed: Annotated[Seed, Role.PER_RUN] = 0
    # Threads of each process that trains on a CPU. Null: the machine's cores, divided among its processes.
    cpu_threads: Annotated[Threads | None, Role.PLACE, Role.PER_PROCESS] = None
    # What to do if the run folder has a run. `auto`: resume from its newest checkpoint if this config continues it.
    # `never`: fail. The folder of a checkpoint: resume from it, here or in a new run folder.
    resume: Annotated[Folder, Role.PLACE] = "auto"
    # A run whose finished pretraining (its folder `pretrained/`) replaces this run's.
    pretrained: Annotated[Folder | None, Role.PER_RUN, Role.AFTER_PRETRAINING] = None
    data: DataConfig = plain_field(default_factory=DataConfig)
    model: ModelConfig = plain_field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = plain_field(default_factory=OptimizerConfig)
    # Stage 1: an autoencoder (γ = 0). The next stage keeps its encoder and resets its decoder.
    pretrain: Annotated[StageConfig, Role.EXTENT] = plain_field(default_factory=lambda: StageConfig(max_epochs=100))
    # Stage 2: the VAE, including annealing.
    train: Annotated[StageConfig, Role.EXTENT, Role.AFTER_PRETRAINING] = plain_field(
        default_factory=lambda: StageConfig(max_epochs=100)
    )
    kl: Annotated[KLConfig, Role.AFTER_PRETRAINING] = plain_field(default_factory=KLConfig)
    inference: Annotated[InferenceConfig, Role.AFTER_PRETRAINING] = plain_field(default_factory=InferenceConfig)
    plateau: PlateauConfig = plain_field(default_factory=PlateauConfig)
    communication: CommunicationConfig = plain_field(default_factory=CommunicationConfig)
    checkpoint: Annotated[CheckpointConfig, Role.PLACE] = plain_field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = plain_field(default_factory=EvaluationConfig)
    speed: Annotated[SpeedConfig, Role.PLACE] = plain_field(default_factory=SpeedConfig)
    tracking: Annotated[TrackingConfig, Role.PLACE] = plain_field(default_factory=TrackingConfig)

    @model_validator(mode="after")
    def _something_to_do(self) -> Config:
        if self.pretrain.max_epochs == 0 and self.train.max_epochs == 0:
            raise ValueError("pretrain.max_epochs and train.max_epochs are both 0: there is nothing to train")
        if self.pretrained is not None and self.train.max_epochs == 0:
            raise ValueError("pretrained is given and train.max_epochs is 0: there is nothing to train")
        return self

    @model_validator(mode="after")
    def _no_step_spoils_those_after_it(self) -> Config:
        if isinstance(self.communication.compression, PowerSGD) and self.optimizer.on_nan == "skip":
            raise ValueError(
                "optimizer.on_nan=skip does not go with communication.compression=powersgd, which adds what it left"
                " out of a step's gradient, finite or not, to the next"
            )
        return self

    @model_validator(mode="after")
    def _a_language_model_has_nothing_of_a_latent_variable(self) -> Config:
        if not self.language_model:
            return self
        given = dict(flatten(self))
        keys = {key: value for key, value in _LANGUAGE_MODEL.items() if given.get(key, value) != value}
        wrong = [f"set {key}={value}" for key, value in keys.items()]
        if "kl.policy" in keys:  # the whole section: the options of another policy would be refused next
            wrong = [advice for advice in wrong if not advice.startswith("set kl.")] + ["set 'kl={policy: constant}'"]
        if self.pretrained is not None:
            wrong.append("leave pretrained out")
        if wrong:
            raise ValueError(
                f"model.latent_size = 0 is a language model, which has no encoder and no KL: {', '.join(wrong)}"
            )
        return self

    @property
    def language_model(self) -> bool:
        """Whether the model has no latent variable: an LSTM language model, whose NLL is exact."""
        return self.model.latent_size == 0

    @property
    def backwards(self) -> int:
        """Backwards of an optimizer step. A posterior that needs the whole batch accumulates within one."""
        return 1 if self.model.posterior.needs_batch else self.optimizer.accumulation_steps

    @property
    def engine_settings(self) -> OptimizerConfig:
        """The optimizer as engines see it: ``accumulation_steps`` is the number of backwards of a step."""
        return replace(self.optimizer, accumulation_steps=self.backwards)

    @property
    def last_stage(self) -> str:
        """The stage whose weights are the run's."""
        return "train" if self.train.max_epochs else "pretrain"

    @property
    def autoencoder(self) -> bool:
        """Whether the run ends with an autoencoder, whose z has no prior and which therefore has no NLL."""
        return self.train.max_epochs == 0 or self.kl.policy.autoencoder

    @property
    def unread(self) -> dict[str, str]:
        """Keys that this config does not read, and what would read them. Skipped stages count as readers."""
        found = unread_options(self)
        data = self.data
        if data.path != CAPTIONS and data.train_size is data.valid_size is data.test_size is None:
            found["data.seed"] = "data.train_size, data.valid_size or data.test_size"
        if self.pretrained is not None:
            found["pretrain.max_epochs"] = "a run without pretrained"
        if self.language_model:
            found |= dict.fromkeys(_OF_THE_LATENT_VARIABLE, "a model.latent_size above 0")
        return found
