"""Mutated tickets are refused or harmless; and the fuzzer that says so finds what is broken."""

import dataclasses
import re
import subprocess
import sys
import time

import numpy as np
import pytest

import fuzz_tickets
from ltcore import ticketfile
from ltcore.errors import TicketFileError


@pytest.mark.slow
def test_ten_thousand_mutated_tickets():
    """In a process of its own, whose memory is limited; `make fuzz` reads more."""
    command = [sys.executable, fuzz_tickets.__file__, "--count", "10000", "--seed", "1"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    assert "of seed 1 in" in found.stdout
    assert ", 0 findings" in found.stdout


def test_the_mutations_are_of_all_kinds_and_repeat():
    made = [fuzz_tickets.mutated(5, number) for number in range(400)]
    assert made == [fuzz_tickets.mutated(5, number) for number in range(400)]
    assert {mutate for mutate, _, _ in made} >= {*fuzz_tickets.DAMAGE, *fuzz_tickets.FORGERIES}


def test_a_forger_can_seal_what_is_accepted(tmp_path):
    """Else forgeries would all be refused for a hash."""
    for data in fuzz_tickets.SEEDS:
        (tmp_path / "forged").write_bytes(fuzz_tickets.sealed(*fuzz_tickets.opened(data)))
        (tmp_path / "golden").write_bytes(data)
        forged, golden = (ticketfile.read(tmp_path / name) for name in ("forged", "golden"))
        assert ticketfile.record_id(forged) == ticketfile.record_id(golden)


READ = ticketfile.read


def trusting(path):
    """A reader that believes what is damaged to be the first golden file."""
    try:
        return READ(path)
    except TicketFileError:
        return READ(fuzz_tickets.GOLDEN[0])


def crashing(path):
    try:
        return READ(path)
    except TicketFileError as error:
        raise KeyError("sites") from error


def wordy(path):
    try:
        return READ(path)
    except TicketFileError as error:
        raise TicketFileError("x" * 10_000) from error


def sleeping(path):
    time.sleep(0.3 if path.name == "mutated" and path.stat().st_size % 5 == 0 else 0)
    return READ(path)


def greedy(path):
    np.ones(300 << 17)
    return READ(path)


def forgetful(path):
    """A reader that loses what was in a file that was saved again."""
    found = READ(path)
    return dataclasses.replace(found, provenance={}) if path.name == "resaved" else found


@pytest.mark.parametrize(
    ("reader", "finding"),
    [
        (trusting, "altered content was accepted"),
        (crashing, "KeyError"),
        (wordy, "a message of 10000 characters"),
        (sleeping, "HangError: took more than 0.2 seconds"),
        (greedy, "unfolded to"),
        (forgetful, "the id changes|a save changes"),
    ],
)
def test_the_fuzzer_finds(tmp_path, monkeypatch, reader, finding):
    monkeypatch.setattr(ticketfile, "read", reader)
    monkeypatch.setattr(fuzz_tickets, "MEASURED", 10)
    monkeypatch.setattr(fuzz_tickets, "SECONDS", 0.2 if reader is sleeping else 60)
    _, findings = fuzz_tickets.fuzz(3, range(60), tmp_path)
    assert findings
    for found in findings:
        assert re.search(finding, found)


def test_the_fuzzer_finds_nothing_where_nothing_is(tmp_path):
    outcomes, findings = fuzz_tickets.fuzz(4, range(300), tmp_path)
    assert findings == []
    assert {outcome for _, outcome in outcomes} == {"refused", "same ticket", "other ticket"}
