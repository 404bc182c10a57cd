"""Fingerprints: what counts as a difference, and how it is worded."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import attrs
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.fingerprint import Fingerprint, capture, differences

HERE = Fingerprint(
    cache_tag="cpython-311",
    magic="a70d0d0a",
    cloudpickle="3.1.2",
    packages=(("torch", "2.13.0"), ("numpy", "2.4.6")),
)


def test_equal_fingerprints_have_no_difference() -> None:
    assert differences(HERE, HERE) == ()


def test_packages_are_sorted_so_their_order_does_not_matter() -> None:
    assert HERE.packages == (("numpy", "2.4.6"), ("torch", "2.13.0"))
    assert attrs.evolve(HERE, packages=HERE.packages[::-1]) == HERE


def test_another_minor_is_named_with_both_tags_and_the_cure() -> None:
    (line,) = differences(attrs.evolve(HERE, cache_tag="cpython-312", magic="cb0d0d0a"), HERE)
    assert line.startswith("Python: the bundle was made by cpython-312")
    assert "this interpreter is cpython-311" in line
    assert "deploy again" in line


def test_the_same_tag_with_other_bytecode_is_a_difference() -> None:
    (line,) = differences(attrs.evolve(HERE, magic="ffff0d0a"), HERE)
    assert "ffff0d0a" in line
    assert "a70d0d0a" in line


def test_every_difference_is_listed_at_once() -> None:
    made = Fingerprint("cpython-312", "cb0d0d0a", "3.1.1", (("numpy", "2.0.0"), ("scipy", "1.0"), ("torch", "2.13.0")))
    found = differences(made, HERE)
    assert [line.partition(":")[0] for line in found] == ["Python", "cloudpickle", "numpy", "scipy"]
    assert "install 2.0.0 there" in found[2]
    assert "this interpreter has none: install it there" in found[3]


def test_a_package_that_only_the_replica_has_does_not_matter() -> None:
    assert differences(attrs.evolve(HERE, packages=()), HERE) == ()


def test_a_package_without_a_number_is_worded_as_such() -> None:
    made = attrs.evolve(HERE, packages=(("numpy", ""),))
    (line,) = differences(made, HERE)
    assert "a version that carries no number" in line


def test_capture_reads_this_interpreter() -> None:
    found = capture(["numpy", "attrs"])
    assert found.cache_tag == sys.implementation.cache_tag
    assert bytes.fromhex(found.magic)[2:] == b"\r\n"
    assert found.cloudpickle == metadata.version("cloudpickle")
    assert dict(found.packages) == {name: metadata.version(name) for name in ("numpy", "attrs")}


def test_capture_finds_the_distribution_behind_another_import_name() -> None:
    found = dict(capture(["PIL", "google"]).packages)
    assert found["PIL"] == metadata.version("pillow")
    assert f"protobuf=={metadata.version('protobuf')}" in found["google"]


def test_capture_leaves_out_what_is_not_installed() -> None:
    assert capture(["no_such_package_anywhere"]).packages == ()


def test_a_package_without_metadata_is_read_and_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare_with.py").write_text("__version__ = '7.1'\nraise RuntimeError('imported')\n")
    (tmp_path / "bare_without.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert dict(capture(["bare_with", "bare_without"]).packages) == {"bare_with": "7.1", "bare_without": ""}


def test_it_survives_json() -> None:
    assert Fingerprint.from_dict(json.loads(json.dumps(HERE.to_dict()))) == HERE


@pytest.mark.parametrize("field", ["cache_tag", "magic", "cloudpickle", "packages"])
def test_a_field_that_is_missing_is_named(field: str) -> None:
    values = {name: value for name, value in HERE.to_dict().items() if name != field}
    with pytest.raises(InvalidRequestError, match=f"fingerprint: {field}=None"):
        Fingerprint.from_dict(values)
