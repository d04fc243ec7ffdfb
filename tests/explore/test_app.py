"""The page answers what it is asked."""

import io
import json

import pytest
import torch

import distvae
from distvae.cli import main
from distvae.explore import serve
from distvae.explore.app import STEPS, app
from tests.explore.test_space import parts_of


@pytest.fixture(scope="module")
def space(finished):
    from distvae.explore.space import build

    model = distvae.load(finished, "cpu")
    with torch.no_grad():  # so few epochs leave no dimension active
        model.model.encoder.posterior.weight.mul_(50)
    return build("mine", model, parts_of(model, all=model.sample(20)), 100)


@pytest.fixture(scope="module")
def client(space):
    return app([space, space]).server.test_client()


def ask(client, outputs, inputs, state=()):
    """Call back as the page does: outputs and inputs are «id.property», or (id, property) for ids with fields."""

    def spelled(identity, name):
        words = identity if isinstance(identity, str) else json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return f"{words}.{name}"

    whole = spelled(*outputs[0]) if len(outputs) == 1 else "..".join(["", "...".join(spelled(*o) for o in outputs), ""])
    body = {
        "output": whole,
        "outputs": [{"id": i, "property": p} for i, p in outputs] if len(outputs) > 1 else
                   {"id": outputs[0][0], "property": outputs[0][1]},
        "inputs": [{"id": i, "property": p, "value": v} for i, p, v in inputs],
        "changedPropIds": [spelled(i, p) for i, p, _ in inputs[:1]],
        "state": [{"id": i, "property": p, "value": v} for i, p, v in state],
    }  # fmt: skip
    found = client.post("/_dash-update-component", json=body)
    assert found.status_code == 200, found.text
    return found.get_json()["response"]


def test_the_page_and_its_style_are_served(client):
    assert client.get("/").status_code == 200
    layout = client.get("/_dash-layout").text
    assert layout.count('"mine"') == 2
    assert b"light-dark" in client.get("/assets/explore.css").data


def test_a_walk_is_the_models(client, space):
    start, end = space.sentences[:2]
    inputs = [("walk", "n_clicks", 0), ("start", "value", start), ("end", "value", end)]
    found = ask(client, [("walk-1", "children")], inputs)["walk-1"]["children"]
    assert [item["props"]["children"] for item in found] == space.model.interpolate(start, end, STEPS)
    inputs[1] = ("start", "value", "Dragons fly .")
    (error,) = ask(client, [("walk-1", "children")], inputs)["walk-1"]["children"]
    assert "'Dragons' is not one of the" in error["props"]["children"]
    inputs[1] = ("start", "value", None)  # an empty field
    assert len(ask(client, [("walk-0", "children")], inputs)["walk-0"]["children"]) == STEPS


def test_samples_are_the_models(client, space):
    inputs = [("draw", "n_clicks", 3), ("temperature", "value", 0.7)]
    found = ask(client, [("samples-0", "children")], inputs)["samples-0"]["children"]
    expected = space.model.sample(6, seed=3, method="sample", temperature=0.7)
    assert [item["props"]["children"] for item in found] == expected
    inputs[1] = ("temperature", "value", 0)
    assert space.model.sample(1, seed=3)[0] in json.dumps(ask(client, [("samples-0", "children")], inputs))


def test_sliders_begin_at_the_picked_sentence_and_move_it(client, space):
    picked = space.sentences[4]
    dimensions = [{"dimension": k, "run": 0} for k in range(len(space.active))]
    outputs = [("sentence-0", "children"), *((d, "value") for d in dimensions)]
    found = ask(client, outputs, [("picked", "data", picked)])
    values = [found[json.dumps(d, sort_keys=True, separators=(",", ":"))]["value"] for d in dimensions]
    assert values == pytest.approx(space.mean[4][space.active].clamp(-3, 3).tolist(), abs=1e-5)
    assert space.model.reconstruct([picked])[0] in json.dumps(found)
    inputs = [(d, "value", v) for d, v in zip(dimensions, values, strict=True)]
    (still,) = ask(client, [("moved-0", "children")], inputs, [("picked", "data", picked)]).values()
    assert still["children"] == space.model.reconstruct([picked])[0]
    inputs[0] = (dimensions[0], "value", 2.5)
    (moved,) = ask(client, [("moved-0", "children")], inputs, [("picked", "data", picked)]).values()
    z = space.mean[4].clone()
    z[space.active[0]] = 2.5
    assert moved["children"] == space.model.decode(z)[0]


@pytest.mark.parametrize("colour", ["KL", "length"])
def test_the_map_shows_every_sentence(client, space, colour):
    inputs = [("colour-0", "value", colour), ("picked", "data", space.sentences[0])]
    (found,) = ask(client, [({"map": 0}, "figure")], inputs).values()
    points, ring = found["figure"]["data"]
    assert points["customdata"] == space.sentences
    assert ring["hoverinfo"] == "skip"


def test_standard_input_is_read_once_for_two_models(finished, monkeypatch):
    sentences = distvae.load(finished).sample(5, method="sample")
    text = io.TextIOWrapper(io.BytesIO("\n".join(sentences).encode()))
    monkeypatch.setattr("sys.stdin", text)
    shown = []
    monkeypatch.setattr(serve, "serve", lambda spaces, port: shown.extend(spaces))
    assert main(["explore", str(finished), "-", "--beside", str(finished)]) == 0
    assert [space.sentences for space in shown] == [sentences, sentences]


def test_bad_input_is_one_line(finished, language_model, capsys):
    for words, message in (
        (["explore", language_model], "is a language model; it has no latent variable"),
        (["explore", finished, "--port", "70000"], "--port 70000: should be at most 65535"),
        (["explore", finished, "--sentences", "1"], "--sentences"),
        (["explore", finished, "/nowhere"], "/nowhere: no such file"),
    ):
        try:
            code = main([str(word) for word in words])
        except SystemExit as refused:
            code = refused.code
        error = capsys.readouterr().err
        assert (code, message in error) == (2, True), error
