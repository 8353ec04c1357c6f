"""The audit says what it found, and never that all is well where nobody was asked."""

import audit


def test_a_known_vulnerability_fails_with_its_name_and_the_version_that_mends_it(capsys):
    weakness = {"id": "CVE-2026-1", "fix_versions": ["1.1"]}
    packages = [{"name": "a", "version": "1.0", "vulns": [weakness]}, {"name": "b", "version": "2", "vulns": []}]
    assert audit.report(packages) == 1
    assert capsys.readouterr().out.startswith(
        "a 1.0: CVE-2026-1, mended in 1.1\n1 known vulnerabilities in 2 packages"
    )


def test_packages_that_nobody_was_asked_about_are_not_called_safe(capsys):
    assert audit.report([{"name": "a", "skip_reason": "not found"}]) == 0
    told = capsys.readouterr()
    assert told.err.startswith("Not audited")
    assert not told.out


def test_without_an_answer_it_says_so_and_fails_nothing(monkeypatch, capsys):
    monkeypatch.setattr(audit, "COMMAND", ["false"])
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: object())
    assert audit.main() == 0
    assert "Not audited" in capsys.readouterr().err
