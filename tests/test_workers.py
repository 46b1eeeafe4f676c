"""The processes that load images."""

import resource

import pytest

from fastinst.data import workers


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        ((1024, 4096), (4096, 4096)),
        ((1024, 2**20), (workers.OPEN_FILES, 2**20)),
        ((1024, resource.RLIM_INFINITY), (workers.OPEN_FILES, resource.RLIM_INFINITY)),
        ((2**20, 2**20), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
        ((4096, 4096), None),
    ],
)
def test_as_many_files_as_are_allowed(monkeypatch, limits, raised):
    told = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: told.append(new))
    workers.allow_open_files()
    assert told == ([raised] if raised else [])


def test_a_system_that_allows_no_more_is_taken_as_it_is(monkeypatch):
    def refuse(*_):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    workers.allow_open_files()
