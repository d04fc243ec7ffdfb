from dataclasses import replace

from distvae.evaluation.scores import Estimate
from distvae.runs.trackers.tensorboard import TensorBoard
from tests.runs.epochs import TRAIN, VALID, record, scalars, texts


def test_tensorboard_holds_the_curves(tmp_path):
    tracker = TensorBoard(tmp_path, 0)
    tracker.epoch(record(10))
    tracker.epoch(record(20, kl_weight=0.5, train=replace(TRAIN, re=30.5), valid=replace(VALID, kl=Estimate(2.0, 1.0))))
    tracker.close()
    assert scalars(tmp_path) == {
        "re/train": [(10, 33.5), (20, 30.5)],
        "re/valid": [(10, 31.25), (20, 31.25)],
        "kl/train": [(10, 3.75), (20, 3.75)],
        "kl/valid": [(10, 4.125), (20, 2.0)],
        "neg_elbo/train": [(10, 37.25), (20, 37.25)],
        "neg_elbo/valid": [(10, 35.375), (20, 35.375)],
        "objective/train": [(10, 34.5), (20, 34.5)],
        "control/kl_weight": [(10, 0.3125), (20, 0.5)],
        "control/learning_rate": [(10, 0.0625), (20, 0.0625)],
        "latent/active_units": [(10, 2.0), (20, 2.0)],
        "latent/mutual_information": [(10, 3.875), (20, 3.875)],
        "throughput/sentences_per_second": [(10, 2500.0), (20, 2500.0)],
        "throughput/checkpoint_stall_seconds": [(10, 0.25), (20, 0.25)],
        "latent_kl/00": [(10, 4.0), (20, 4.0)],
        "latent_kl/01": [(10, 0.125), (20, 0.125)],
    }


def test_tensorboard_holds_sentences_as_text(tmp_path):
    tracker = TensorBoard(tmp_path, 0)
    tracker.texts("prior samples", ["A man is here.", "", "<unk> and <s>"], 10)
    tracker.close()
    assert texts(tmp_path, "prior samples") == [(10, "- A man is here.\n- \n- &#60;unk&#62; and &#60;s&#62;")]


def test_a_warning_is_shown_as_text(tmp_path):
    tracker = TensorBoard(tmp_path, 0)
    tracker.warn("<b>dead</b>", 10)
    tracker.close()
    assert texts(tmp_path, "warnings") == [(10, "&#60;b&#62;dead&#60;/b&#62;")]


def test_flushed_curves_are_in_the_file_before_it_is_closed(tmp_path):
    tracker = TensorBoard(tmp_path, 0)
    tracker.epoch(record(10))
    tracker.flush()
    assert scalars(tmp_path)["re/valid"] == [(10, 31.25)]
    tracker.close()


def test_points_within_an_epoch_stay_up_to_the_step_that_a_run_resumes_from(tmp_path):
    tracker = TensorBoard(tmp_path, 0)
    tracker.epoch(record(10))
    for step in (12, 14, 16):
        tracker.point({"step/re": float(step)}, step)
    tracker.epoch(record(20))
    tracker.close()
    tracker = TensorBoard(tmp_path, 10, 14)
    tracker.point({"step/re": 0.5}, 15)
    tracker.epoch(record(20))
    tracker.close()
    found = scalars(tmp_path)
    assert found["step/re"] == [(12, 12.0), (15, 0.5)]
    assert [step for step, _ in found["re/train"]] == [10, 20]


def test_a_finished_run_has_a_line_in_the_hparams_tab(tmp_path):
    for learning_rate in (0.5, 0.25):  # a resumed run replaces it
        tracker = TensorBoard(tmp_path, 0)
        tracker.results({"test/re": 31.25}, 40, {"optimizer.learning_rate": learning_rate, "data.subset": None})
        tracker.close()
    folder = tmp_path / "tensorboard"
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    assert len(list(folder.glob("*.hparams"))) == 1
    assert scalars(tmp_path) == {"test/re": [(40, 31.25)]}


def test_a_trial_of_a_sweep_has_no_line_of_its_own(tmp_path):
    tracker = TensorBoard(tmp_path, 0)
    tracker.results({"test/re": 31.25}, 40, {})
    tracker.close()
    assert list((tmp_path / "tensorboard").glob("*.hparams")) == []


def test_the_norm_of_the_gradient_and_the_memory_are_curves():
    found = record(gradient_norm=1.5, peak_memory_mb=512.0).scalars()
    assert (found["control/gradient_norm"], found["memory/peak_mb"]) == (1.5, 512.0)
