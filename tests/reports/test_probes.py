"""The tables of `distvae probe`."""

import pytest

from distvae.evaluation.clusters import Clusters
from distvae.evaluation.scores import Estimate
from distvae.reports import comparison, probes
from distvae.runs.probing import Column, Probe, Probes


def made(sizes, quick=False, notes=()):
    def probe(model, kind, mean):
        accuracy = {size: Estimate(mean, 0.0123) for size in sizes}
        return Probe(model, kind, accuracy, None if quick else Clusters(2, mean / 2, 0.031, Estimate(mean / 4, 0.01)))

    each = [probe("one", "z", 0.9), probe("one", "mean", 0.96), probe("[b]two", "z", 0.4), probe("[b]two", "mean", 0.5)]
    each = [found for found in each if found.kind == "z" or not quick]
    columns = {name: Column(2, 81, 20, Estimate(0.25, None), (*each, probe(None, "words", 1.0))) for name in ("a", "b")}
    return Probes("test", 0, {}, columns, notes)


@pytest.fixture
def printed(capsys):
    def run(found):
        comparison.show_parts(probes.parts(found))
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return run


def test_a_quick_table_has_a_row_for_each_column(printed):
    assert printed(made([81], quick=True, notes=("c: left out",))) == [
        "labels read from z, in %     chance          one       [b]two   bag of words",
        "────────────────────────────────────────────────────────────────────────────",
        "a                          25.0 ± ?   90.0 ± 1.2   40.0 ± 1.2    100.0 ± 1.2",
        "b                          25.0 ± ?   90.0 ± 1.2   40.0 ± 1.2    100.0 ± 1.2",
        "accuracy on test of linear probes that learn from z of 81 labelled sentences; chance: the most frequent label",
        "c: left out",
    ]


def test_the_whole_report_has_means_and_clusters(printed):
    lines = printed(made([10, 1000]))
    rows = [line.split("  ")[0] for line in lines]
    assert rows.count("a, 10 labels") == rows.count("b, 1,000 labels") == 2
    assert "probes that learn from z of as many labelled sentences" in " ".join(lines)
    means = lines[next(i for i, line in enumerate(lines) if line.startswith("labels read from posterior means")) + 2]
    assert " ".join(means.split()) == "a, 10 labels 25.0 ± ? 96.0 ± 1.2 50.0 ± 1.2 100.0 ± 1.2"
    head = next(i for i, line in enumerate(lines) if line.startswith("clusters, in %"))
    assert "one: NMI   one: accuracy" in lines[head]
    clusters = "a 48.0 (3.1) 24.0 ± 1.0 25.0 (3.1) 12.5 ± 1.0 50.0 (3.1) 25.0 ± 1.0"
    assert " ".join(lines[head + 2].split()) == clusters
