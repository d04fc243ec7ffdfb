"""Every setting, as frozen dataclasses whose defaults are the paper's."""

from __future__ import annotations

from dataclasses import field as plain_field
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from distvae.config.kl import KLConfig, either
from distvae.system.settings import (
    LARGEST_INT,
    RULES,
    AboveZero,
    Count,
    Folder,
    Location,
    NotNegative,
    OpenUnit,
    Positive,
    Probability,
    Seed,
)

CAPTIONS = "captions"
SNLI = "stanfordnlp/snli"

Precision = Literal["no", "bf16"]


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
    def _captions_are_independent_draws(self) -> DataConfig:
        if self.path == CAPTIONS and (self.distinct or self.max_words or self.columns):
            raise ValueError(
                "the captions are independent draws whose log p(x) is exact: distinct, max_words and columns do not"
                " apply to data.path=captions"
            )
        return self

    @model_validator(mode="after")
    def _captions_have_their_vocabulary(self) -> DataConfig:
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
    mixed_precision: Precision | None = None
    # A step whose loss or gradient is not finite moves no weight. It stops the run, or (`skip`) is left out of the
    # epoch's sums and counted, and the run continues.
    on_nan: Literal["stop", "skip"] = "stop"

    @model_validator(mode="after")
    def _options_belong_to_the_optimizer(self) -> OptimizerConfig:
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
    def _options_belong_together(self) -> CommunicationConfig:
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
    # K of an importance-weighted NLL at each validation of the VAE. 0: none, because it takes K decodings per sentence.
    validation_samples: Count = 0
    # Sentences shown in TensorBoard after each validation.
    samples: Count = 8
    # Of the decoder in importance sampling, where it is nearly all of the work; all other scores are float32. Null: as
    # in the training. A CPU without bfloat16 instructions takes float32.
    mixed_precision: Precision | None = None


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
    # What to do if the run's folder holds a run. `auto`: resume from its newest checkpoint if this config continues it;
    # `never`: fail. Or the folder of a checkpoint: resume from that one, here or in a new run.
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
    def _something_to_do(self) -> Config:
        if self.pretrain.max_epochs == 0 and self.train.max_epochs == 0:
            raise ValueError("pretrain.max_epochs and train.max_epochs are both 0: there is nothing to train")
        if self.pretrained is not None and self.train.max_epochs == 0:
            raise ValueError("pretrained is given and train.max_epochs is 0: there is nothing to train")
        return self

    @model_validator(mode="after")
    def _no_step_spoils_those_after_it(self) -> Config:
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
        return self.train.max_epochs == 0 or self.kl.policy.autoencoder

    @property
    def unread(self) -> dict[str, str]:
        """Keys that this config's choices do not read, and what reads them. Stages of no epochs read as the others."""
        found = {f"kl.{name}": either(readers) for name, readers in self.kl.unread.items()}
        data = self.data
        if data.path != CAPTIONS and data.train_size is data.valid_size is data.test_size is None:
            found["data.seed"] = "data.train_size, data.valid_size or data.test_size"
        if self.pretrained is not None:
            found["pretrain.max_epochs"] = "a run without pretrained"
        return found
