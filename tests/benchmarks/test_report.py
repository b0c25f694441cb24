"""Figures are worth what their header says: on what hardware, at which commit."""

import json

import pytest
import torch

from benchmarks.report import print_report


def test_the_gpus_of_the_machine_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["NVIDIA H100", "NVIDIA H100", "NVIDIA L4"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    print_report("Speed", {"images_per_s": 12.34567})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(", 2 x NVIDIA H100, 1 x NVIDIA L4")
    assert json.loads(printed[-1])["images_per_s"] == 12.35
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    print_report("Speed", {"images_per_s": 1.0})
    assert capsys.readouterr().out.splitlines()[0].endswith("), no GPU")
