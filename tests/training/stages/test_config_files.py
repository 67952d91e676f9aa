import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
from asymcir_training.errors import ConfigError, DataError
from asymcir_training.stages.config_files import load_config, render_config, to_plain
from asymcir_training.stages.sections import DistilRun, FoundationRun, UnionRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    scale: tuple[float, float] = (0.5, 1.5)
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.share > 1.0:
            raise DataError(f"expected share up to 1, got {self.share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    out: Annotated[Path, "where the result goes"]
    batch: Annotated[int, "pictures of a step"] = 96
    names: tuple[str, ...] = ()
    note: str | None = None
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    run: Section
    other: Inner = field(default_factory=Inner)


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_file_and_overrides_meet(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.toml", '[run]\nout = "x"\nbatch = 4\n[run.inner]\nscale = [1, 2]\n')
    config = load_config(Run, path, ["run.batch=8", "run.names=['a', 'b']", "run.note=plain words", "other.share=1e-1"])
    inner = Inner(scale=(1.0, 2.0))
    assert config.run == Section(out=Path("x"), batch=8, names=("a", "b"), note="plain words", inner=inner)
    assert config.other.share == 0.1
    assert to_plain(config)["run"]["out"] == "x"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["run.bach=1"], r"unknown key run\.bach; did you mean run\.batch\?"),
        (["batch=1"], r"unknown key batch; did you mean run\.batch\?"),
        (["run.inner.zzz=1"], r"unknown key run\.inner\.zzz; known here: scale, share"),
        (["run.batch=many"], r"run\.batch: .*integer.*got 'many'"),
        (["run.inner.share=2"], "expected share up to 1, got 2"),
        (["run.batch=1", "run.batch.deep=1"], "is a value, not a section"),
        (["run.inner=3"], r"run\.inner: .*got 3"),
        (["run"], "expected an override like"),
    ],
)
def test_what_is_wrong_is_named(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(Run, None, ["run.out=x", *overrides])


def test_a_missing_key_and_a_broken_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.out is missing"):
        load_config(Run)
    with pytest.raises(ConfigError, match=r"run\.out is missing: set it in the file or by run\.out=VALUE"):
        load_config(Run, None, ["run.batch=2"])
    with pytest.raises(ConfigError, match="line 1"):
        load_config(Run, _write(tmp_path / "b.toml", "[run\n"))
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(Run, tmp_path / "none.toml")


def test_the_rendered_configuration_reads_back_as_the_defaults(tmp_path: Path) -> None:
    text = render_config(Run)
    assert "# pictures of a step\nbatch = 96" in text and "# out = # must be set" in text
    assert tomllib.loads(text)["run"]["inner"] == {"scale": [0.5, 1.5], "share": 0.0}
    assert load_config(Run, _write(tmp_path / "c.toml", text), ["run.out=x"]) == Run(run=Section(out=Path("x")))


FOUNDATION = (FoundationRun, ["run.out=x", "data.pictures=['p']", "start.name=ViT-B-32"])
DISTIL = (DistilRun, ["run.out=x", "data.pictures=['p']", "foundation.name=ViT-B-32"])
UNION = (UnionRun, ["run.out=x", "triplets.path=t", "foundation.name=ViT-B-32"])


@pytest.mark.parametrize(
    ("stage", "idle", "words"),
    [
        (FOUNDATION, ["run.validate_every=5"], r"run\.validate_every does nothing here"),
        (
            DISTIL,
            ["run.validate_every=5"],
            r"validate_every does nothing here \(validation\.triplets is not set\): leave it",
        ),
        (DISTIL, ["validation.gallery=['g']"], r"validation\.gallery does nothing here \(validation"),
        (DISTIL, ["student.symmetric=true", "distil.frozen=['a']"], r"distil\.frozen does nothing here \(a symmetric"),
        (
            UNION,
            ["triplets.light=l", "run.validate_every=5", "triplets.held_out=0"],
            r"run\.validate_every does nothing here \(triplets\.held_out is 0",
        ),
        (
            UNION,
            ["triplets.light=l", "validation.gallery=['g']"],
            r"validation\.gallery does nothing here \(validation",
        ),
        (UNION, ["triplets.light=l", "transagg.batch=7"], r"\[transagg\] does nothing here \(triplets\.system"),
        (UNION, ["triplets.system=transagg", "union.batch=7"], r"\[union\] does nothing here \(transagg reads"),
        (UNION, ["triplets.system=transagg", "triplets.light=l"], r"triplets\.light does nothing here"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(stage: tuple[type, list[str]], idle: list[str], words: str) -> None:
    kind, needed = stage
    with pytest.raises(ConfigError, match=words):
        load_config(kind, None, [*needed, *idle])


def test_the_same_keys_are_taken_where_they_work() -> None:
    assert load_config(FOUNDATION[0], None, [*FOUNDATION[1], "data.cache=c"]).data.cache == Path("c")
    validated = ["validation.triplets=t", "run.validate_every=5", "validation.gallery=['g']", "distil.frozen=['a']"]
    distil = load_config(DISTIL[0], None, [*DISTIL[1], *validated, "data.cache=c"])
    assert (distil.run.validate_every, distil.data.cache) == (5, Path("c"))
    asked = ["triplets.light=l", "triplets.limit=9", "triplets.step=7", "union.batch=7"]
    union = load_config(UNION[0], None, [*UNION[1], *asked])
    assert (union.triplets.step, union.union.batch) == (7, 7)
    assert union.run.epochs == 2.0 and union.triplets.held_out == 0.05  # as long as UNION's public recipe
    assert load_config(UNION[0], None, [*UNION[1], *asked, "run.validate_every=5"]).run.validate_every == 5
    fused = load_config(UNION[0], None, [*UNION[1], "triplets.system=transagg", "transagg.batch=7"])
    assert fused.transagg.batch == 7


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("data.workers=100000", "data.workers from 0 to 256, got 100000"),
        ("data.workers=-1", "data.workers from 0 to 256, got -1"),
        ("run.chunks=0", "run.chunks from 1 to 65536, got 0"),
        ("run.seed=-1", "run.seed from 0"),
        ("run.save_every=0", "run.save_every from 1"),
        ("run.epochs=inf", "epochs above 0 and at most"),
        ("student.size=100000", "student.size from 1 to 4096"),
        ("student.sentence_length=0", "student.sentence_length from 1 to 64"),
    ],
)
def test_numbers_have_a_range(setting: str, expected: str) -> None:
    whole = ["run.out='light'", "data.pictures=['p']", "foundation.name='f'"]
    assert load_config(DistilRun, overrides=whole).run.chunks == 1
    with pytest.raises(ConfigError, match=expected):
        load_config(DistilRun, overrides=[*whole, setting])


def test_the_union_stage_has_its_ranges_too() -> None:
    whole = ["run.out='union'", "triplets.path='t'", "triplets.light='l'", "foundation.name='f'"]
    for setting, expected in (
        ("workers=1000", "workers from 0 to 256"),
        ("triplets.limit=-1", "triplets.limit from 0"),
        ("run.chunks=0", "run.chunks from 1"),
    ):
        with pytest.raises(ConfigError, match=expected):
            load_config(UnionRun, overrides=[*whole, setting])


def test_a_missing_key_is_named_by_its_option() -> None:
    with pytest.raises(ConfigError, match=r"run\.out is missing: pass --out, or set it in the file"):
        load_config(Run, options={"run.out": "--out"})


def test_a_share_is_a_share() -> None:
    with pytest.raises(ConfigError, match="held_out from 0 to below 1, got 1"):
        load_config(UNION[0], None, [*UNION[1], "triplets.light=l", "triplets.held_out=1"])
