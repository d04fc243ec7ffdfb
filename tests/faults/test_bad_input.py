"""Bad configs and bad sentences by the hundred: each ends in one line and exit code 2, and leaves nothing half-written.

Every example runs in this process, in a folder of its own, and under an alarm: whatever hangs fails.
"""

import contextlib
import gzip
import io
import json
import os
import random
import resource
import signal
import socket
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distvae.config.load import dump_config, load_config
from distvae.config.schema import Config, DataConfig
from distvae.data import corpus
from distvae.system.errors import UserError, printable
from distvae.train import main
from tests.conftest import PATIENCE


@contextlib.contextmanager
def alarm():
    """Whatever happens inside takes no longer than ``PATIENCE``."""

    def ring(*_):
        raise TimeoutError(f"took more than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def inside_a_new_folder():
    """A folder for one example, as the working directory."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, alarm():
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def refused_by_the_program(*arguments: str) -> str:
    """What the program says of bad input, once it is known to be one line and exit code 2."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    said = err.getvalue()
    assert code == 2
    assert all(": starting " in line for line in out.getvalue().splitlines())
    assert said.startswith("distvae: ")
    assert said.endswith("\n")
    assert_one_line(said[:-1])
    return said.removeprefix("distvae: ")[:-1]


def assert_one_line(message: str) -> None:
    assert printable(message) == message
    assert len(message) < 2200
    assert "Traceback" not in message


# -- Configs -----------------------------------------------------------------------------------------------------------


def check_config(content: bytes, *overrides: str) -> bool:
    """A config is refused as it should be, or it comes back as itself from its dump. Returns whether it was refused."""
    with inside_a_new_folder() as folder:
        path = folder / "some.yaml"
        path.write_bytes(content)
        try:
            config, message = load_config(path, overrides), None
        except UserError as error:
            config, message = None, str(error)
        if config is not None:
            path.write_text(dump_config(config), encoding="utf-8")
            assert load_config(path) == config
            return False
        assert refused_by_the_program(str(path), *overrides) == message
        left = files_under(folder) - {"some.yaml"}
        assert len(left) <= 1
        for name in left:
            assert Path(name).name == "status.json"
            status = json.loads((folder / name).read_text(encoding="utf-8"))
            assert (status["state"], status["reason"]) == ("failed", message)
        return True


TREE = {**yaml.safe_load(dump_config(Config(run="mine")))}
SECTIONS = [key for key, value in TREE.items() if isinstance(value, dict)]
PLACES = [(key,) for key in TREE] + [(section, key) for section in SECTIONS for key in TREE[section]]

# A run's folder and a cache lie where a path says: these stay inside the example's folder.
WORDS = st.text(max_size=30).filter(lambda text: not text.startswith(("/", "~")) and ".." not in text)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**301)
    | st.floats()
    | WORDS
    | st.sampled_from(["", "a\0b", "a\nb", "x\x1b[31my", "\ufeff", "\u2028", "é" * 90, "no", "1e5", "<<", "=", "~x"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
)


@st.composite
def changed_trees(draw) -> bytes:
    """A good config of which one to three things are changed."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in TREE.items()}
    for place in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3)):
        *parents, last = place
        parent = tree.get(parents[0]) if parents else tree
        if not isinstance(parent, dict):
            continue
        change = draw(st.sampled_from(["value", "value", "value", "key", "gone", "list", "deeper", "higher"]))
        value = parent.pop(last, None)
        if change == "value":
            parent[last] = draw(VALUES)
        elif change == "key":
            parent[draw(SCALARS)] = value
        elif change == "list":
            parent[last] = [value]
        elif change == "deeper":
            parent[last] = {last: value}
        elif change == "higher":
            tree[last] = value
    return yaml.safe_dump(tree, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")


PIECES = [
    *(b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"&a ", b"*a", b"!!int ", b"!!bool ", b"!!float ", b"!!binary ", b"!x "),
    *(b"!!python/name:os.system ", b"!!timestamp ", b"!!set ", b"? ", b": ", b"- ", b"{", b"}", b"[", b"]", b"'", b'"'),
    *(b"\n", b"\n\n", b"\r", b"#", b"|", b">", b"%", b"@", b"`", b"---\n", b"...\n", b"%YAML 1.2\n", b"<<: "),
    *(b"seed: 1\n", b"  seed: 1\n", b"\xe2\x80\xa8", b"\xc2\x85", b"\xed\xa0\x80", b'"\\ud800"', b'"\\UFFFFFFFF"'),
    *(b".nan", b"-.inf", b"9" * 400, b"9" * 5000, b"1e999", b"0x10", b"0o7", b"[" * 400, b"{a: " * 3000, b"- " * 3000),
    *(b"x" * 5000, b"\\", b"~", b"!", b"&", b"*"),
]


@st.composite
def changed_texts(draw) -> bytes:
    """A good config's text with pieces put in, cut out or cut off."""
    text = yaml.safe_dump(TREE, default_flow_style=draw(st.sampled_from([None, False, True]))).encode()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        length = draw(st.sampled_from([0, 0, 0, 1, 3, 20]))
        text = text[:at] + draw(st.sampled_from(PIECES) | st.binary(max_size=4)) + text[at + length :]
    return text[: draw(st.none() | st.integers(0, len(text)))]


OVERRIDES = st.lists(
    st.sampled_from(["=", "", "a=", "a", "a.b.c=[", "kl", "kl=", "kl=3", "kl.=1", ".=1", "seed.x=1", "seed=*a", "seed"])
    | st.sampled_from(["kl.weight=.nan", "seed=!!bool x", "data={a: &x [*x]}", f"seed={'[' * 400}", "seed=-1"])
    | st.sampled_from(["data.path=caf\udce9.txt", "caf\udce9=1", "run=caf\udce9", "data.columns=a,b", "a\nb=1"])
    | st.builds("{}={}".format, st.sampled_from([".".join(place) for place in PLACES[1:]]), WORDS),
    min_size=1,
    max_size=3,
).filter(lambda overrides: not any(override.startswith("-") for override in overrides))  # those are the parser's

BY_THE_HUNDRED = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=150, **BY_THE_HUNDRED)
@given(content=changed_trees())
def test_changed_trees(content):
    check_config(content)


@settings(max_examples=150, **BY_THE_HUNDRED)
@given(content=changed_texts())
def test_changed_texts(content):
    check_config(content)


@settings(max_examples=80, **BY_THE_HUNDRED)
@given(overrides=OVERRIDES)
@example(overrides=["run=caf\udce9", "seed=-1"])
@example(overrides=["a" + ".a" * 3000 + "=1"])
def test_overrides(overrides):
    check_config(b"run: mine", *overrides)


BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name, name, b", ".join([b"*%c" % (name - 1)] * 9)) for name in b"bcdefg"
)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"\0",
        b"- seed",
        b"seed",
        b"*a",
        b"{",
        b"a: &x [*x]",
        b"&x\ndata: *x",
        b"data: &x {path: *x}",
        b"kl: &x {target_rate: 1}\nplateau: *x",
        b"a: " + b"[" * 2000,
        b"a: " + b"[" * 300 + b"]" * 300,
        b"seed: " + b"[" * 210 + b"]" * 210,
        b"".join(b" " * depth + b"a:\n" for depth in range(1500)),
        b"seed: 1\nseed: 2",
        b"kl: {weight: 1, weight: 1}",
        b"seed: 1\n---\nseed: 2",
        b"seed: !!bool x",
        b"seed: !!int ''",
        b"seed: !!float ''",
        b"run: !!timestamp x",
        b"run: !!binary x",
        b'run: "\\UFFFFFFFF"',
        b'run: "\\ud800"\nseed: -1',
        b'run: "a\\0b"',
        b'run: "a\\0b"\nseed: -1',
        b"run: ''",
        b"run: [a]\nseed: -1",
        b'"a\\nb": 1',
        b'"\\e[31mred": 1',
        b'data: {path: "a\\0b"}',
        b'data: {cache: "a\\0b"}',
        b'pretrained: "\\0"',
        b"seed: " + b"x" * 100_000,
        b"x" * 100_000 + b": 1",
        b"\n".join(b"k%d: 1" % i for i in range(300)),
        b"model: {hidden_size: 1" + b"0" * 4000 + b"}",
        b"model: {hidden_size: 1" + b"0" * 5000 + b"}",
        b"optimizer: {batch_size: 2147483648}",
        b"optimizer: {learning_rate: 1" + b"0" * 400 + b"}",
        b"kl: {target_rate: 1e300}",
        b"model: {init_range: 1e39}",
        b"cpu_threads: 100000",
    ],
    ids=lambda content: repr(content[:24]),
)
def test_a_config_is_refused(content):
    assert check_config(content)


def test_aliases_do_not_unfold():
    with inside_a_new_folder() as folder:
        (folder / "some.yaml").write_bytes(BOMB)
        assert "an alias can only stand for a single value" in refused_by_the_program("some.yaml")


def test_a_good_config_is_not_refused():
    assert not check_config(b"seed: &s 3\nevaluation: {seed: *s}")
    assert not check_config(b"")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "socket", "device", "loop", "long name"])
def test_a_config_that_is_no_file(kind):
    with inside_a_new_folder() as folder, socket.socket(socket.AF_UNIX) as connection:
        make(folder / "some.yaml", kind, connection)
        message = refused_by_the_program({"device": "/dev/null", "long name": "x" * 5000}.get(kind, "some.yaml"))
        assert ": cannot be read as a config: " in message


def make(path: Path, kind: str, connection: socket.socket) -> None:
    """Something that is there and is no file, or (for other kinds) nothing."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        connection.bind(path.name)
    elif kind == "loop":
        path.symlink_to(path.name)


# -- Sentences ---------------------------------------------------------------------------------------------------------


def check_prepared(folder: Path, **data) -> str | None:
    """Sentences are refused in one line, or there are some for each split. Returns the line.

    ``folder/cache`` holds one whole corpus if they are not refused, and nothing if they are.
    """
    cache = folder / "cache"
    data = DataConfig(**{"cache": str(cache), "workers": 1, "min_count": 1, **data})
    try:
        prepared = corpus.load(corpus.prepare(data, progress=False))
    except UserError as error:
        assert_one_line(str(error))
        assert not cache.exists() or not list(cache.iterdir())
        return str(error)
    for split in corpus.SPLITS:
        assert len(getattr(prepared, split)) > 0
        assert min(getattr(prepared, split).lengths) > 2
    assert [path.name for path in cache.iterdir()] == [prepared.fingerprint]
    return None


def check_file(name: str, content: bytes, **data) -> str | None:
    with inside_a_new_folder() as folder:
        (folder / name).write_bytes(content)
        return check_prepared(folder, path=str(folder / name), **data)


SENTENCES = [f"A dog runs {i} times, she said." for i in range(30)]


def parquet(**columns: list | pa.Array) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def json_lines(rows: list) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv_of(rows: list[list[str]]) -> bytes:
    return "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows).encode()


TEXT = "\n".join(SENTENCES).encode()
JSONL = json_lines([{"text": sentence, "number": i} for i, sentence in enumerate(SENTENCES)])
CSV = csv_of([["text", "number"], *([sentence, "1"] for sentence in SENTENCES)])
PARQUET = parquet(text=SENTENCES, number=list(range(30)))
GOOD = {
    "a.txt": TEXT,
    "a.jsonl": JSONL,
    "a.json": json.dumps([{"text": sentence} for sentence in SENTENCES]).encode(),
    "a.csv": CSV,
    "a.parquet": PARQUET,
    "a.txt.gz": gzip.compress(TEXT, mtime=0),
    "a.jsonl.gz": gzip.compress(JSONL, mtime=0),
    "a.csv.gz": gzip.compress(CSV, mtime=0),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_files_are_not_refused(name):
    assert check_file(name, GOOD[name]) is None


GARBAGE = [
    *(b"\0", b"\xff", b"\n", b"\n\n \n", b'"', b",", b"\r", b"\x1a", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8"),
    *(b"null\n", b"[1]\n", b'{"text": 1}\n', b'{"text": null}\n', b'{"text": ["a"]}\n', b'{"text": {"a": "b"}}\n'),
    *(b"[" * 5000, b'{"a":' * 5000, b"\0" * 3000, b"PAR1", b"\x1f\x8b", b"x" * 200_000, b"NaN", b"9" * 5000),
]


@st.composite
def damaged_files(draw) -> tuple[str, bytes]:
    """A good file cut off, overwritten here and there, in another encoding, or under another's name."""
    name = draw(st.sampled_from(sorted(GOOD)))
    content = GOOD[name]
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["cut", "overwrite", "put in", "flip", "encode", "twice", "rename"]))
        at = draw(st.integers(0, len(content)))
        piece = draw(st.sampled_from(GARBAGE) | st.binary(max_size=8))
        if kind == "cut":
            content = content[:at]
        elif kind == "overwrite":
            content = content[:at] + piece + content[at + len(piece) :]
        elif kind == "put in":
            content = content[:at] + piece + content[at:]
        elif kind == "flip":
            noise = random.Random(at)
            content = bytes(byte ^ (1 << noise.randrange(8)) if noise.random() < 0.02 else byte for byte in content)
        elif kind == "encode":
            content = content.decode("latin-1").encode(draw(st.sampled_from(["utf-16", "utf-8", "utf-32-be"])))
        elif kind == "twice":
            content += content
        else:
            name = draw(st.sampled_from(sorted(GOOD)))
    return name, content


CELLS = st.text(max_size=8) | st.sampled_from(
    ["None", "", " ", '"', "a\nb", "2020-01-01", "\0", "\ufeff", "x,y", "1e5"]
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | CELLS
JSON = st.recursive(PLAIN, lambda a: st.lists(a, max_size=3) | st.dictionaries(CELLS, a, max_size=3), max_leaves=5)
OBJECTS = st.fixed_dictionaries({}, optional={"text": JSON, "other": JSON, "": JSON})
ARROWS = st.sampled_from(
    [
        *(
            pa.int64(),
            pa.float16(),
            pa.bool_(),
            pa.binary(),
            pa.string(),
            pa.large_string(),
            pa.string_view(),
            pa.null(),
        ),
        *(pa.list_(pa.string()), pa.struct([("a", pa.string())]), pa.timestamp("s"), pa.duration("s"), pa.date32()),
        *(pa.dictionary(pa.int32(), pa.string()), pa.decimal128(5, 2), pa.map_(pa.string(), pa.string())),
    ]
)


@st.composite
def strange_files(draw) -> tuple[str, bytes]:
    """A file that is well-formed, or nearly, and holds anything."""
    kind = draw(st.sampled_from(["txt", "jsonl", "json", "csv", "parquet"]))
    if kind == "txt":
        return "a.txt", "\n".join(draw(st.lists(CELLS, max_size=20))).encode()
    if kind == "jsonl":
        rows = draw(st.lists(OBJECTS, max_size=12) | st.lists(JSON, max_size=4))
        return "a.jsonl", json_lines(rows * draw(st.sampled_from([1, 12])))
    if kind == "json":
        return "a.json", json.dumps(draw(JSON | st.lists(OBJECTS, max_size=12))).encode()
    if kind == "csv":
        width = draw(st.integers(1, 3))
        header = draw(st.lists(st.just("text") | CELLS, min_size=width, max_size=width))
        return "a.csv", csv_of([header, *draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=15))])
    columns = draw(st.dictionaries(st.just("text") | CELLS, ARROWS, max_size=2))
    return "a.parquet", parquet(**{name: pa.nulls(20, kind) for name, kind in columns.items()})


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "columns": st.sampled_from([("text",), ("number",), ("text", "text"), ("",), ("a\nb",), ("no such",)]),
        "max_words": st.integers(1, 8),
        "distinct": st.booleans(),
        "valid_size": st.sampled_from([1, 5, 29, 10**9]),
        "test_size": st.sampled_from([1, 5, 29, 10**9]),
        "train_size": st.sampled_from([1, 10**9]),
    },
)


@settings(max_examples=60, **BY_THE_HUNDRED)
@given(file=damaged_files() | strange_files(), data=SETTINGS)
def test_bad_files(file, data):
    check_file(*file, **data)


@pytest.mark.long
@settings(max_examples=300, **BY_THE_HUNDRED)
@given(file=damaged_files(), data=SETTINGS)
def test_damaged_files(file, data):
    check_file(*file, **data)


@pytest.mark.long
@settings(max_examples=300, **BY_THE_HUNDRED)
@given(file=strange_files(), data=SETTINGS)
def test_strange_files(file, data):
    check_file(*file, **data)


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 20, [None, *pa.array(["a"] * 20).buffers()[1:2], pa.py_buffer(b"\xff" * 20)]
)

REFUSED = [
    ("a.txt", b"", "contains no sentences"),
    ("a.txt", b"\n \n\t\n", "contains no sentences"),
    ("a.txt", b"A dog.", "1 sentence cannot be split"),
    ("a.txt", TEXT.decode().encode("utf-16"), "a.txt: is UTF-16, not UTF-8"),
    ("a.txt", TEXT + b"\xe9", "line 30: is not UTF-8"),
    ("a.txt", gzip.compress(TEXT), "is gzip, not text; rename it to end in .gz"),
    ("a.txt", TEXT + b"\n" + TEXT.decode().encode("utf-16-le"), "line 31: contains a NUL byte"),
    ("a.txt.gz", TEXT, "cannot be unzipped"),
    ("a.txt.gz", GOOD["a.txt.gz"][:-9], "cannot be unzipped"),
    ("a.txt.gz", GOOD["a.txt.gz"][:20], "cannot be unzipped"),
    ("a.txt.gz", GOOD["a.txt.gz"][:30] + b"\xff" * 9 + GOOD["a.txt.gz"][39:], "cannot be unzipped"),
    ("a.txt.gz", GOOD["a.txt.gz"] + b"junk", "cannot be unzipped"),
    ("a.parquet.gz", gzip.compress(PARQUET), "has an unsupported file type"),
    ("a.doc", TEXT, "has an unsupported file type"),
    # Arrow's reader of JSON ends the process over this one.
    ("a.jsonl", b"null\n", "line 1: is not a JSON object"),
    ("a.jsonl", JSONL + b"null\n" * 10_000, "line 31: is not a JSON object"),
    ("a.json", b"null", "one object per line, or a list of objects"),
    ("a.json", b"[null]", "contains no sentences: 1 empty line left out"),
    ("a.json", b"[" * 100_000, "cannot be read as json"),
    ("a.json", b'[{"text": "a"}, 1]', "one object per line, or a list of objects"),
    ("a.json", b"[]", "contains no sentences"),
    ("a.jsonl", b"{}\n" * 20, "contains no sentences"),
    ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "line 1: is not a JSON object"),
    ("a.jsonl", b'{"text": ' + b"[" * 3000 + b"]" * 3000 + b"}\n", "line 1: is not a JSON object"),
    ("a.jsonl", JSONL[:-9], "line 30: is not a JSON object"),
    ("a.jsonl", b'{"x\\ny": "a"}\n', r"has no column text, only x\ny"),
    ("a.jsonl", json_lines([{"text": "a"}, {"text": ["a"]}]), "line 2: column text holds a list"),
    ("a.csv", b'text\n"A dog\n', "line 2: is not CSV"),
    ("a.csv", b"text\n  \n  \n", "contains no sentences"),
    ("a.csv", b'"te\nxt"\na\n', r"has no column text, only te\nxt"),
    ("a.csv", b",number\na,1\n", "has no column text, only Unnamed: 0, number"),
    ("a.csv", CSV.replace(b'"1"', b'"1","2"'), "has 3 fields where the header has 2"),
    ("a.parquet", b"", "is not Parquet"),
    ("a.parquet", PARQUET[: len(PARQUET) // 2], "is not Parquet"),
    ("a.parquet", PARQUET[:-8] + b"\0\0\0\0PAR1", "is not Parquet"),
    ("a.parquet", PARQUET[:4] + b"\0" * (len(PARQUET) - 12) + PARQUET[-8:], "is not Parquet"),
    ("a.parquet", PARQUET[:10] + b"\xff" * 30 + PARQUET[40:], "cannot be read as Parquet"),
    ("a.parquet", parquet(text=NOT_UTF8), "contains a sentence that is not UTF-8"),
    ("a.parquet", parquet(text=pa.array([1, 2])), "column text holds int64"),
    ("a.parquet", parquet(text=pa.nulls(20, pa.string())), "contains no sentences: 20 empty lines left out"),
]


@pytest.fixture(params=["corpus", pytest.param("program", marks=pytest.mark.long)])
def refused(request):
    """What is said of sentences that are refused: by ``prepare``, or by the whole program."""
    return check_prepared if request.param == "corpus" else refused_by_training


@pytest.mark.parametrize(("name", "content", "message"), REFUSED, ids=range(len(REFUSED)))
def test_a_file_is_refused(refused, name, content, message):
    with inside_a_new_folder() as folder:
        (folder / name).write_bytes(content)
        assert message in refused(folder, path=str(folder / name))


def refused_by_training(folder: Path, **data: str) -> str:
    """What the program says of bad sentences, once it is known that it leaves nothing but the start of a run."""
    (folder / "some.yaml").write_text("run: mine\ndata: {cache: cache, workers: 1}\n", encoding="utf-8")
    before = files_under(folder)
    overrides = [f"data.{key}={json.dumps(value)}" for key, value in data.items()]
    message = refused_by_the_program(str(folder / "some.yaml"), *overrides)
    left = files_under(folder) - before
    assert left == {"mine/config.yaml", "mine/environment.json", "mine/starts/0001.json", "mine/status.json"}
    assert not (folder / "cache").exists() or not list((folder / "cache").iterdir())
    status = json.loads((folder / "mine" / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["reason"]) == ("failed", message)
    return message


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file or folder"),
        ("folder", "has no file for train"),
        ("pipe", "is a pipe, a socket or a device"),
        ("socket", "is a pipe, a socket or a device"),
        ("loop", "no such file or folder"),
        ("/dev/null", "is a pipe, a socket or a device"),
        ("/dev/zero", "is a pipe, a socket or a device"),
        ("~nosuchuser/a.txt", "no such user"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("a\nb.txt", r"data.path=a\nb.txt: no such file"),
    ],
)
def test_sentences_in_no_file(refused, kind, message):
    with inside_a_new_folder() as folder, socket.socket(socket.AF_UNIX) as connection:
        make(folder / "a.txt", kind, connection)
        path = "a.txt" if kind in ("missing", "folder", "pipe", "socket", "loop") else kind
        assert message in refused(folder, path=path)


@pytest.mark.parametrize(
    ("names", "odd", "message"),
    [
        ((), None, "has no file for train"),
        (("train.txt", "valid.txt"), None, "has no file for test"),
        (("train.txt", "valid.txt", "dev.txt", "test.txt"), None, "has several files for valid"),
        (("train.txt", "valid.txt", "test-train.txt"), None, "has several files for train"),
        (("train.txt", "valid.txt"), "folder", "has no file for test"),
        (("train.txt", "valid.txt"), "pipe", "has no file for test"),
        (("train.txt", "valid.txt"), "loop", "has no file for test"),
        (("train.txt", "valid.txt", "test.csv"), None, "test.csv: has no column text, only a dog"),
    ],
)
def test_a_folder_that_lacks_a_split(refused, names, odd, message):
    with inside_a_new_folder() as folder, socket.socket(socket.AF_UNIX) as connection:
        (folder / "data").mkdir()
        for name in names:
            (folder / "data" / name).write_text("a dog\n", encoding="utf-8")
        make(folder / "data" / "test.txt", odd, connection)
        assert message in refused(folder, path="data")


@pytest.mark.parametrize("cache", ["~nosuchuser/x", "x" * 5000, "/dev/null", "/dev/null/x", "/proc/x", "a.txt"])
def test_a_cache_that_is_no_folder(refused, cache):
    with inside_a_new_folder() as folder:
        (folder / "a.txt").write_bytes(TEXT)
        message = refused(folder, path="a.txt", cache=cache)
        assert message.startswith(f"data.cache={cache[:900]}")


@pytest.mark.parametrize("limit", [100, 50_000, 160_000, 200_000])
def test_a_full_disk(limit):
    """Wherever on the way no more can be written."""
    rows = "\n".join(f"A dog runs {i * i} times round a tree." for i in range(4000))
    with inside_a_new_folder() as folder:
        (folder / "a.txt").write_text(rows, encoding="utf-8")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            message = check_prepared(folder, path=str(folder / "a.txt"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert message == f"data.cache={folder}/cache: cannot be written: File too large"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, as root alone can")
def test_a_locked_folder():
    with inside_a_new_folder() as folder:
        (folder / "a.txt").write_bytes(TEXT)
        os.seteuid(65534)
        try:
            with pytest.raises(UserError) as caught:
                corpus.prepare(DataConfig(path=str(folder / "a.txt"), cache=str(folder / "cache")), progress=False)
        finally:
            os.seteuid(0)
        assert str(caught.value) == f"data.path={folder}/a.txt: cannot be read: Permission denied"


@pytest.mark.parametrize("name", ["train/*.arrow", "valid/state.json", "test/dataset_info.json", "vocabulary.json"])
@pytest.mark.parametrize("byte", [b"\0", b"\xff", b"{"])
def test_a_corpus_that_is_damaged_and_yet_as_long(name, byte):
    with inside_a_new_folder() as folder:
        (folder / "a.txt").write_bytes(TEXT)
        built = corpus.prepare(DataConfig(path="a.txt", cache="cache", workers=1), progress=False)
        damaged = next(built.glob(name))
        damaged.write_bytes(byte * damaged.stat().st_size)
        with pytest.raises(UserError) as caught:
            corpus.load(built)
        assert_one_line(str(caught.value))


def test_no_flipped_bit_of_a_corpus_goes_unseen():
    noise = random.Random(0)
    with inside_a_new_folder() as folder:
        (folder / "a.txt").write_bytes(TEXT)
        built = corpus.prepare(DataConfig(path="a.txt", cache="cache", workers=1), progress=False)
        paths = [path for path in sorted(built.rglob("*")) if path.is_file()]
        for path in paths * 8:
            content = path.read_bytes()
            at = noise.randrange(len(content))
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << noise.randrange(8)]) + content[at + 1 :])
            try:
                # White space of the manifest may change: it says the same.
                same = json.loads(path.read_bytes()) == json.loads(content)
            except ValueError:
                same = False
            assert corpus.is_whole(built) == (same and path.name == "manifest.json"), f"byte {at} of {path}"
            path.write_bytes(content)
        assert corpus.is_whole(built)
