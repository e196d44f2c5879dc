"""What README, ARCHITECTURE and RELIABILITY claim is there: settings, commands, paths, targets, folders and files."""

import re
from pathlib import Path

import msgspec

from engram_bus.api.operations import OPERATIONS
from engram_bus.limits import HEARTBEAT_SECONDS, PAGE_UNITS_MAX, PAYLOAD_BYTES_MAX
from engram_bus.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
RELIABILITY = (ROOT / "RELIABILITY.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    for field in msgspec.structs.fields(Settings):
        flag, variable = f"--{field.name.replace('_', '-')}", f"ENGRAM_{field.name.upper()}"
        row = next((line for line in README.splitlines() if f"`{flag}`" in line and f"`{variable}`" in line), None)
        assert row is not None, f"{flag} ({variable}) has no row in README's settings"
        told = re.findall(r"`([^`]*)`", row)[2] if len(re.findall(r"`([^`]*)`", row)) > 2 else ""
        assert told == _as_told(field.default), f"{flag}: README says {told!r}, it is {field.default!r}"


def _as_told(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    if default is None or default == ():
        return "none"
    return str(default)


def test_every_make_target_the_readme_names_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
    assert named <= set(targets)
    assert {"run", "test", "demo"} <= named


def test_every_path_the_readme_names_is_served() -> None:
    served = {operation.path.replace(":path", "") for operation in OPERATIONS} | {"/stream"}
    table = README[README.index("## Use") : README.index("**Retry safely.**")]
    named = {path for path in re.findall(r"`(?:[A-Z/]+ )?(/[a-z][^`?]*)`", table) if "json" not in path}
    assert named - served - {"/docs", "/api/v1"} == set()


def test_every_folder_of_the_package_is_in_the_architecture() -> None:
    for folder in (ROOT / "engram_bus").iterdir():
        if folder.is_dir() and (folder / "__init__.py").exists():
            assert re.search(rf"^  {folder.name}/? ", ARCHITECTURE, re.MULTILINE), folder.name


def test_the_limits_in_the_readme_are_the_limits() -> None:
    assert PAYLOAD_BYTES_MAX == 2**20
    assert "| payload of a unit | 1 MiB |" in README
    assert PAGE_UNITS_MAX == 1_000
    assert "| units on a page | 1,000 " in README
    assert HEARTBEAT_SECONDS == 15


def test_the_changelog_has_this_version() -> None:
    from engram_bus import __version__

    assert f"[{__version__}]" in CHANGELOG


def test_every_file_that_reliability_names_exists() -> None:
    named = set(re.findall(r"`([a-z]+/[\w/.]+)`", RELIABILITY))
    assert len(named) > 30
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_every_make_target_that_reliability_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", RELIABILITY)) <= targets
