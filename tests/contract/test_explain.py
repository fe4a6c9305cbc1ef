"""Errors point at a place in the client's own document, whatever unions and models stand behind it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.contract.explain import FieldError, explain
from app.contract.spec import SPEC, parse_spec
from tests.specs import Document, prune_spec, train_spec

JOB = "job_" + "0" * 32


def _errors(document: Document | bytes) -> list[FieldError]:
    with pytest.raises(ValidationError) as caught:
        parse_spec(document)
    return explain(caught.value, SPEC)


@pytest.mark.parametrize(
    ("document", "pointer", "code", "said"),
    [
        (train_spec(training={"epocs": 1}), "/training/epocs", "unknown_field", "did you mean 'epochs'?"),
        (train_spec(dropout=0.5), "/dropout", "unknown_field", "known: "),
        (train_spec(training={"epochs": 0}), "/training/epochs", "greater_than_equal", "greater than or equal to 1"),
        (train_spec(model={"channels": [1, 2, 999]}), "/model/channels/2", "less_than_equal", "512"),
        (train_spec(pruning={"method": "treshold"}), "/pruning/method", "unknown_value", "did you mean 'threshold'?"),
        (train_spec(dataset={"name": "mnits"}), "/dataset/name", "unknown_value", "did you mean 'mnist'?"),
        (train_spec(training={"device": "gpu"}), "/training/device", "unknown_value", "'cuda'? Known: auto, cpu, cuda"),
        (
            train_spec(training={"precision": "bfloat16"}),
            "/training/precision",
            "unknown_value",
            "did you mean 'bf16'?",
        ),
        (
            train_spec(regularization={"penalty": "L1"}),
            "/regularization/penalty",
            "unknown_value",
            "mean 'l1'? Known: ",
        ),
        (
            train_spec(pruning={"method": "gpu"}),
            "/pruning/method",
            "unknown_value",
            "'gpu'; known: bn-folded, channels",
        ),
        (train_spec(training={"device": 3}), "/training/device", "literal_error", "'auto', 'cpu' or 'cuda'"),
        (train_spec(pruning={"method": "threshold", "treshold": 1}), "/pruning/treshold", "unknown_field", "threshold"),
        (train_spec(regularization={"penalty": "l1", "strenght": 1}), "/regularization/strenght", "unknown_field", "?"),
        (train_spec(initial={"job_id": "x"}), "/initial/job_id", "string_pattern_mismatch", "job_ and 32 digits or"),
        (train_spec(labels={"A/~b": "x"}), "/labels/A~1~0b", "string_pattern_mismatch", "a label's key as 1 to"),
        (train_spec(labels={"a": "\n"}), "/labels/a", "string_pattern_mismatch", "write one line"),
        (train_spec(display_name="a\nb"), "/display_name", "string_pattern_mismatch", "without control characters"),
        ({"kind": "trian"}, "/kind", "unknown_value", "did you mean 'train'?"),
        ({"kind": "quantize"}, "/kind", "unknown_value", "known: compare, prune, sweep, train"),
        ({"kind": None}, "/kind", "unknown_value", "unknown value null; known: compare, prune"),
        ({"kind": True}, "/kind", "unknown_value", "unknown value true; known: "),
        ({"kind": ["train"]}, "/kind", "unknown_value", 'unknown value ["train"]; known: '),
        (train_spec(pruning={"method": {"a": 1.5}}), "/pruning/method", "unknown_value", 'value {"a": 1.5}; known'),
        ({}, "/kind", "missing", "one of: compare, prune, sweep, train"),
        ({"kind": "compare", "jobs": [JOB, 5]}, "/jobs/1", "string_type", "string"),
        ({"kind": "compare", "jobs": [JOB]}, "/jobs", "too_short", "List should have at least 2 items, not 1"),
        ({"kind": "compare"}, "/jobs", "missing", "required"),
        (prune_spec(JOB, pruning=None), "/pruning", "dict_type", "an object with 'method', one of: bn-folded,"),
        (train_spec(regularization="L1"), "/regularization", "dict_type", 'an object, such as {"penalty": "l1"}'),
        (train_spec(training={"optimizer": "adam"}), "/training/optimizer", "dict_type", 'such as {"name": "adam"}'),
        (train_spec(initial=JOB), "/initial", "model_type", "should be an object; its fields: artifact, job_id"),
        (b"[1]", "", "dict_type", "should be an object with 'kind', one of: compare, prune, sweep, train"),
    ],
)
def test_an_error_names_place_code_and_remedy(document: Any, pointer: str, code: str, said: str) -> None:
    [error] = _errors(document)

    assert (error.pointer, error.code) == (pointer, code)
    assert said in error.detail


def test_every_error_is_told_in_order() -> None:
    errors = _errors(train_spec(training={"epochs": 0, "batch_size": -1}, histogram={"bins": 1}))
    assert [error.pointer for error in errors] == ["/training/epochs", "/training/batch_size", "/histogram/bins"]


def test_text_that_is_no_json_is_one_error_about_the_whole() -> None:
    [error] = _errors(b'{"kind": ')
    assert (error.pointer, error.code) == ("", "json_invalid")
    assert "line 1" in error.detail


def test_what_the_client_sent_is_not_sent_back_whole() -> None:
    [error] = _errors(train_spec(**{"x" * 5_000: 1}))
    assert len(error.detail) < 1_000
    [error] = _errors({"kind": ["x"] * 5_000})
    assert len(error.detail) < 1_000
    [error] = _errors(train_spec(display_name="secret\n" * 10_000))
    assert "secret" not in error.detail
