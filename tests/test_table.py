"""Tables: from a file to a ledger, to a model file, and to predictions beside the rows of another file."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import bitsback
from bitsback.config.from_data import config_of_data, read_config
from bitsback.data.settings import TableSettings
from bitsback.data.table import rows_of
from bitsback.errors import ConfigError, DataError, MissingExtraError, RunError
from bitsback.likelihoods import BernoulliLikelihood
from bitsback.model import Prediction

ROWS = 120
GAUSSIAN = ["likelihood.kind=gaussian", "training.epochs=3", "network.kind=sequential", "network.layers=[Flatten, Linear]"]


def houses(rows=ROWS, seed=0):
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "area": np.round(draw.normal(90, 20, rows), 1),
            "rooms": draw.integers(1, 6, rows),
            "city": draw.choice(["Rome", "Oslo", "Bonn"], rows),
            "garden": draw.choice([True, False], rows),
        }
    )
    frame["price"] = np.round(3 * frame.area + 20 * (frame.city == "Rome") + draw.normal(0, 5, rows), 2)
    frame.loc[::7, "area"] = np.nan
    frame.loc[::11, "city"] = None
    return frame


def written(frame, path):
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


def loaded(path, target="price", **settings):
    return TableSettings(path=path, target=target, **settings).load()


def table(tmp_path, head, *lines, name="t.csv"):
    path = tmp_path / name
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def numbered(tmp_path, line, head="a,b,y", rows=30):
    return table(tmp_path, head, *(line(row) for row in range(rows)))


def reference(frame, train_rows):
    """Inputs of the columns of :func:`houses`, by pandas and numpy alone."""
    train = frame.iloc[train_rows]
    columns = []
    for name in ("area", "rooms"):
        known = train[name].dropna().astype(float)
        columns.append((frame[name].astype(float).fillna(known.mean()) - known.mean()) / known.std(ddof=0))
        if train[name].isna().any():
            columns.append(frame[name].isna().astype(float))
    dummies = pd.get_dummies(frame["city"]).astype(float)
    columns += [dummies[level] for level in sorted(train["city"].dropna().unique())]
    columns.append(frame["city"].isna().astype(float))
    columns.append(frame["garden"].astype(float))
    return np.stack([np.asarray(column, dtype=float) for column in columns], 1)


# --- inputs


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_inputs_are_those_of_pandas_and_numpy(tmp_path, suffix):
    frame, path = houses(), tmp_path / f"houses{suffix}"
    frame.to_csv(path, index=False, sep="\t") if suffix == ".tsv" else written(frame, path)
    dataset = loaded(path)
    order = np.random.default_rng(0).permutation(ROWS)
    test, train = np.sort(order[:24]), np.sort(order[24:])
    expected = reference(frame, train)
    np.testing.assert_allclose(dataset.train.inputs.numpy(), expected[train], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dataset.test.inputs.numpy(), expected[test], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(dataset.train.targets.numpy(), frame.price.to_numpy()[train])
    assert dataset.train.targets.dtype == torch.float64
    assert dataset.scaling == "standard"


def test_numbers_that_are_far_from_zero_keep_their_differences(tmp_path):
    path = numbered(tmp_path, lambda row: f"{1_700_000_000 + 3 * (row % 7)},{row % 2},{row}.5")
    inputs = loaded(path, "y").train.inputs[:, 0].double()
    assert float(inputs.std(correction=0)) == pytest.approx(1, abs=1e-3)
    assert len(inputs.unique()) == 7


def test_times_in_seconds_are_centred(tmp_path):
    values = np.round(1.7e9 + 5 * np.random.default_rng(0).standard_normal(50), 3)
    path = numbered(tmp_path, lambda row: f"{values[row]},{row % 2},{row}.5", rows=50)
    dataset = loaded(path, "y")
    rows = np.sort(np.random.default_rng(0).permutation(50)[10:])
    expected = (values[rows] - values[rows].mean()) / values[rows].std()
    np.testing.assert_allclose(dataset.train.inputs[:, 0].numpy(), expected, rtol=1e-6, atol=1e-6)
    assert dataset.columns[0].mean == pytest.approx(values[rows].mean(), rel=1e-15)


def test_statistics_and_levels_are_of_the_training_rows_alone(tmp_path):
    lines = [f"{row % 3},{'ab'[row % 2]},{row},train" for row in range(20)] + ["1000,c,7,test", ",,8,test"]
    path = table(tmp_path, "x,kind,y,part", *lines)
    dataset = loaded(path, "y", split={"column": "part"})
    assert [one.name for one in dataset.columns] == ["x", "kind"]
    x, kind = dataset.columns
    values = np.arange(20) % 3
    assert x.mean == pytest.approx(values.mean())
    assert x.std == pytest.approx(values.std())
    assert x.missing == 0
    assert kind.levels == ("a", "b")
    assert kind.values == 3
    unseen, missing = dataset.test.inputs
    assert unseen[1:].tolist() == [0, 0]  # the level is none of training's
    assert float(unseen[0]) == pytest.approx((1000 - values.mean()) / values.std(), rel=1e-5)
    assert missing.tolist() == pytest.approx([0, 0, 0], abs=1e-6)  # a value that training never missed becomes the mean


def test_embeddings_get_numbers_and_places_of_levels(tmp_path):
    lines = [f"{row % 5},{'zyx'[row % 3] if row % 4 else ''},{row % 7 * 0.5},train" for row in range(40)]
    dataset = loaded(
        table(tmp_path, "x,kind,y,part", *lines, "1,w,1,test", "1,,1,test"),
        "y",
        split={"column": "part"},
        categories="embedding",
    )
    inputs = dataset.train.inputs[:]
    place = {"": 4, "x": 1, "y": 2, "z": 3}
    expected = [place["zyx"[row % 3] if row % 4 else ""] for row in range(40)]
    assert inputs["categories"].tolist() == [[number] for number in expected]
    assert inputs["categories"].dtype == torch.int64
    assert inputs["numbers"].shape == (40, 1)
    assert dataset.test.inputs[:]["categories"].tolist() == [[0], [4]]
    assert dataset.columns[1].values == 5


def test_scaling_is_what_the_settings_say(tmp_path):
    path = numbered(tmp_path, lambda row: f"{row % 7},{'true' if row % 2 else 'False'},{row}.5")
    rows = np.sort(np.random.default_rng(0).permutation(30)[6:])
    values = rows % 7
    for scaling, expected in (("none", values), ("centred", values - values.mean())):
        inputs = loaded(path, "y", scaling=scaling).train.inputs.numpy()
        np.testing.assert_allclose(inputs[:, 0], expected, rtol=1e-5, atol=1e-5)
        assert inputs[:, 1].tolist() == (rows % 2).tolist()


@pytest.mark.parametrize(
    ("values", "labels", "dtype"),
    [
        (["cat", "dog"], ("cat", "dog"), torch.int64),
        (["True", "False"], ("false", "true"), torch.int64),
        (["3", "5"], None, torch.int64),
        (["3.0", "5.0"], None, torch.float64),
    ],
)
def test_targets_are_labels_or_numbers(tmp_path, values, labels, dtype):
    dataset = loaded(numbered(tmp_path, lambda row: f"{row % 7},{row % 3},{values[row % 2]}"), "y")
    assert dataset.train.targets.dtype == dtype
    assert dataset.has_texts == (labels is not None)
    assert labels is None or dataset.labels == labels


def test_targets_too_large_for_float64_stay_real_numbers(tmp_path):
    path = numbered(tmp_path, lambda row: f"{row % 7},{row % 3},{10**19 + row * 10**17}")
    settings = TableSettings(path=path, target="y")
    dataset = settings.load()
    assert dataset.train.targets.dtype == torch.float64
    assert float(dataset.train.targets.min()) > 0
    _, targets, _ = rows_of(path, settings.settled(dataset))
    assert targets.dtype == np.float64
    assert targets.tolist() == pytest.approx([1e19 + row * 1e17 for row in range(30)])


@pytest.mark.parametrize("kind", [None, "category", "yes_no"])
def test_truth_values_have_one_spelling_as_targets(tmp_path, kind):
    frame = pd.DataFrame({"a": np.arange(30) % 7, "y": np.arange(30) % 3 == 0})
    types = {} if kind is None else {"y": kind}
    expected = frame.y.map({True: "true", False: "false"}).tolist()
    for suffix in (".csv", ".parquet"):
        settings = TableSettings(path=written(frame, tmp_path / f"t{suffix}"), target="y", types=types)
        dataset = settings.load()
        assert dataset.labels == ("false", "true")
        rows = np.sort(np.random.default_rng(0).permutation(30)[6:])
        assert dataset.train.targets.tolist() == frame.y[rows].astype(int).tolist()
        for given in (frame, tmp_path / "t.csv"):
            assert rows_of(given, settings.settled(dataset))[1].tolist() == expected
    lines = [f"{row % 7},{['TRUE', 'true', 'False'][row % 3]}" for row in range(30)]
    assert loaded(table(tmp_path, "a,y", *lines), "y", types=types).labels == ("false", "true")
    same = table(tmp_path, "a,y", *(f"{row % 7},True" for row in range(30)))
    with pytest.raises(DataError, match="the target 'y' is 'true' in every row"):
        loaded(same, "y", types=types)


def test_frames_that_are_no_tables_are_refused_by_column(tmp_path):
    path = numbered(tmp_path, lambda row: f"{row % 7},{'xyz'[row % 3]},{row}.5")
    settings = TableSettings(path=path, target="y")
    settings = settings.settled(settings.load())
    frame = pd.DataFrame([[1, "x"], [2, "y"]], columns=["a", "b"], index=[5, 3])
    assert rows_of(frame, settings)[0][:].shape == (2, 4)
    with pytest.raises(DataError, match="two columns of the frame are called 'a'; rename one"):
        rows_of(pd.DataFrame([[1, 2, "x"]], columns=["a", "a", "b"]), settings)
    for odd in ([1, "x"], ["x", 2.5], [10**30, 1], [{"a": 1}, 3]):
        with pytest.raises(DataError, match=r"column 'b' of the frame holds values of several kinds .*; make them alike"):
            rows_of(pd.DataFrame({"a": [1, 2], "b": pd.Series(odd, dtype=object)}), settings)


def test_a_type_decides_what_values_are(tmp_path):
    path = numbered(tmp_path, lambda row: f"{row % 3},{row % 2},{row % 2}")
    dataset = loaded(path, "y", types={"a": "category", "b": "yes_no", "y": "category"})
    assert [one.kind for one in dataset.columns] == ["category", "yes_no"]
    assert dataset.columns[0].levels == ("0", "1", "2")
    assert dataset.labels == ("0", "1")
    assert dataset.has_texts


def test_columns_that_do_not_vary_are_left_out_and_shown(tmp_path):
    dataset = loaded(numbered(tmp_path, lambda row: f"7,,{row % 5},id{row},{row}.5", "same,none,x,id,y"), "y", drop=["id"])
    assert [one.name for one in dataset.columns] == ["x"]
    shown = dataset.columns_text()
    assert shown.startswith("24 rows to train with, 6 to test with\n")
    assert "same    left out: it is the same in all training rows" in shown
    assert "none    left out: it has no value in a training row" in shown
    assert "id      left out: data.drop" in shown


def test_a_semicolon_a_decimal_comma_a_byte_order_mark_and_latin_1(tmp_path):
    lines = "\n".join(f"{row % 7},5;{'éa'[row % 2]};{row},25" for row in range(30))
    for content, encoding in (
        (b"\xef\xbb\xbf" + f"a;b;y\n{lines}\n".encode(), "utf-8"),
        (f"a;b;y\n{lines}".encode("latin-1"), "latin-1"),
    ):
        (tmp_path / "t.csv").write_bytes(content)
        dataset = loaded(tmp_path / "t.csv", "y", decimal=",", encoding=encoding)
        assert [one.name for one in dataset.columns] == ["a", "b"]
        assert dataset.columns[1].levels == ("a", "é")
        assert float(dataset.train.targets[0]) % 1 == 0.25


def test_quoted_values_hold_delimiters_and_line_breaks(tmp_path):
    dataset = loaded(
        numbered(tmp_path, lambda row: f'"{"Rome, old" if row % 2 else "two" + chr(10) + "lines"}",{row % 3},{row}'), "y"
    )
    assert dataset.columns[0].levels == ("Rome, old", "two\nlines")


# --- what is refused

REFUSED = {
    "a missing target": (lambda row: f"{row % 7},1,{row}", {"target": "z"}, r"has no column 'z'; there are: a, b, y"),
    "no target": (lambda row: f"{row % 7},1,{row}", {"target": None}, r"target=NAME; its columns are: a, b, y"),
    "a text among numbers": (
        lambda row: f"{'n/a' if row == 16 else row % 7},{row % 5},{row}",
        {},
        r"row 17 of column 'a' is 'n/a', and 29 of its 30 values are numbers; correct it, or set data.missing=\['n/a'\] if",
    ),
    "a text where numbers are": (
        lambda row: f"{'x' if row == 4 else row % 7},{row % 5},{row}",
        {"types": {"a": "number"}},
        r"row 5 of column 'a' is 'x', no number; correct it",
    ),
    "no truth value": (
        lambda row: f"{'maybe' if row == 4 else 'true'},{row % 5},{row}",
        {"types": {"a": "yes_no"}},
        r"row 5 of column 'a' is 'maybe', neither true nor false; correct it",
    ),
    "dates": (lambda row: f"2020-01-{row + 1:02d},{row % 5},{row}", {}, r"column 'a' holds dates .*'2020-01-01'.*data.drop=\[a\]"),
    "times": (lambda row: f"12:{row + 10},{row % 5},{row}", {}, r"column 'a' holds dates or times"),
    "target of dates": (lambda row: f"{row % 7},1,1.2.20{row + 10}", {}, r"column 'y' holds dates .* or choose another target"),
    "identifiers": (lambda row: f"id{row},{row % 5},{row}", {}, r"'a' has 24 different texts in 24 training rows.*data.drop=\[a\]"),
    "row numbers": (lambda row: f"{row + 1},{row % 5},{row}", {}, r"column 'a' counts the rows from 1 on.*data.drop=\[a\]"),
    "a constant target": (lambda row: f"{row % 7},1,3", {}, r"the target 'y' is 3 in every row of .*; choose another column"),
    "a constant label": (lambda row: f"{row % 7},1,yes", {}, r"the target 'y' is 'yes' in every row"),
    "an empty target": (lambda row: f"{row % 7},1,", {}, r"the target 'y' of .* has no value in any row"),
    "a target that is missing": (lambda row: f"{row % 7},1,{'' if row == 4 else row}", {}, r"'y' has no value in row 5 of .*1 in all"),
    "texts that never repeat": (lambda row: f"{row % 7},1,n{row}", {}, r"target 'y' of .* is another text in every row"),
    "inputs that do not vary": (lambda row: f"7,,{row}", {}, r"has no column beside its target that varies"),
    "percentages": (lambda row: f"{row}%,{row % 5},{row}", {}, r"column 'a' holds numbers with other characters, such as '0%'"),
    "a number too large": (lambda row: f"{'1e999' if row == 3 else row % 7},1,{row}", {}, r"row 4 of column 'a' is '1e999'"),
    "an unknown column to drop": (lambda row: f"{row % 7},1,{row}", {"drop": ["c"]}, r"has no column 'c'"),
    "a target to drop": (lambda row: f"{row % 7},1,{row}", {"drop": ["y"]}, r"'y' of .* is the target, and cannot be dropped"),
    "a part that is neither": (
        lambda row: f"{row % 7},{'train' if row < 20 else 'dev'},{row}",
        {"split": {"column": "b"}},
        r"row 21 of column 'b', which splits .*, is 'dev'; write train or test",
    ),
    "no training rows": (lambda row: f"{row % 7},test,{row}", {"split": {"column": "b"}}, r"says test in every row"),
    "uneven rows": (lambda row: f"{row % 7},1,{row}{',9' if row == 5 else ''}", {}, r"line 7 of .* has 4 values, and there are 3 columns"),
    "a codec of bytes": (lambda row: f"{row % 7},1,{row}", {"encoding": "hex"}, r"there is no encoding 'hex' of text; set data.encod"),
    "a codec of nothing": (lambda row: f"{row % 7},1,{row}", {"encoding": "undefined"}, r"no encoding 'undefined' of text"),
    "a point beside commas": (
        lambda row: f"{'1.234' if row == 4 else row % 7},1,{row}",
        {"decimal": ","},
        r"row 5 of column 'a' is '1.234', with a point, and data.decimal is a comma; write numbers such as 1234,5",
    ),
    "an encoding": (lambda row: f"{row % 7},1,{row}", {"encoding": "klingon"}, r"there is no encoding 'klingon'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_tables_are_refused_by_name_with_the_fix(tmp_path, case):
    line, settings, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        loaded(numbered(tmp_path, line), **{"target": "y", **settings})


CONTENTS = {
    "nothing": (b"", "is empty; give a table"),
    "names alone": (b"a,b,y\n", "has names of columns and no rows"),
    "one row": (b"a,b,y\n1,2,3\n", "has one row; give at least two"),
    "two columns of one name": (b"a,a,y\n1,2,3\n2,3,4\n", "two columns of .* are called 'a'; rename one"),
    "a column without a name": (b",b,y\n1,2,3\n2,3,4\n", r"has no name; give it one, or leave it out: data.drop=\[''\]"),
    "no names": (b"1,2,3.5\n1,2,3\n2,3,4\n", "holds numbers .* in place of the names"),
    "latin-1": ("a,b,y\né,2,3\n".encode("latin-1"), "is not UTF-8 text; .*data.encoding"),
    "latin-1 in names": ("é,b,y\n1,2,3\n".encode("latin-1"), "is not UTF-8 text; .*data.encoding"),
    "utf-16": ("a,b,y\n1,2,3\n".encode("utf-16"), "is UTF-16 text; set data.encoding=utf-16"),
    "no text": (b"\x89PNG\0\0\0\0", "is neither text nor Parquet"),
    "a broken Parquet file": (b"PAR1" + bytes(30), "cannot read .* as Parquet"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_bad_files_are_refused(tmp_path, case):
    content, message = CONTENTS[case]
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        loaded(tmp_path / "t.csv", "y")


def test_columns_that_are_written_out_are_those_of_the_training_rows(tmp_path):
    path = numbered(tmp_path, lambda row: f"{row % 7},{'xyz'[row % 3]},{row}.5,{row % 2}", "a,b,y,c")
    columns = loaded(path, "y").columns
    assert loaded(path, "y", columns=columns).columns == columns
    assert loaded(path, "y", columns=columns[::-1]).columns == columns[::-1]
    for settings in ({"drop": ["b"]}, {"target": "c"}):
        with pytest.raises(
            DataError, match=r"is an input in data.columns, and also the target, dropped .*; leave data.columns out"
        ):
            loaded(path, **{"target": "y", **settings}, columns=columns)
    with pytest.raises(DataError, match=r"data.columns leaves out 'c', an input"):
        loaded(path, "y", columns=columns[:2])
    with pytest.raises(DataError, match=r"data.columns has 'd', which is no input"):
        loaded(path, "y", columns=[*columns, columns[0].model_copy(update={"name": "d"})])
    for place, update in ((0, {"mean": 2.0}), (0, {"std": 3.0}), (1, {"levels": ("x", "y")}), (0, {"missing": 1})):
        other = list(columns)
        other[place] = other[place].model_copy(update=update)
        with pytest.raises(DataError, match=r"data.columns says otherwise of '[ab]' than the training rows"):
            loaded(path, "y", columns=other)
    with pytest.raises(DataError, match="says otherwise of 'a'"):
        loaded(path, "y", columns=columns, types={"a": "category"})


def test_an_empty_line_of_one_column_is_a_missing_value(tmp_path):
    path = numbered(tmp_path, lambda row: f"{'' if row == 3 else row % 7},{row}.5", "a,y")
    settings = TableSettings(path=path, target="y")
    settings = settings.settled(settings.load())
    for before in ("", "\n\r\n", "\ufeff"):
        for line_end in ("\n", "\r\n"):
            text = before + line_end.join(["a", "1", "", "3", "", ""])
            (tmp_path / "one.csv").write_bytes(text.encode())
            inputs, _, given = rows_of(tmp_path / "one.csv", settings)
            assert inputs[:][:, 1].tolist() == [0, 1, 0, 1]
            assert given.column("a").to_pylist() == ["1", "", "3", ""]
    (tmp_path / "two.csv").write_text("a,y\n1,2\n\n3,4\n")
    assert len(rows_of(tmp_path / "two.csv", settings)[0]) == 2


def test_texts_mean_missing_values_in_files_of_texts_alone(tmp_path):
    frame = pd.DataFrame({"a": ["NA", "b", "c"] * 10, "y": np.arange(30.0) % 7})
    assert loaded(written(frame, tmp_path / "t.parquet"), "y").columns[0].levels == ("NA", "b", "c")
    settings = TableSettings(path=written(frame, tmp_path / "t.csv"), target="y", missing=[-999, "NA"])
    assert settings.missing == ("-999", "NA")
    dataset = settings.load()
    assert dataset.columns[0].levels == ("b", "c")
    assert dataset.columns[0].missing > 0
    one = rows_of(frame.iloc[:1], settings.settled(dataset))[0][:]
    assert one.tolist() == [[0, 0, 0]]  # a level that training had not, as frames have None for no value


def test_numbers_mean_missing_values_and_one_name_is_dropped(tmp_path):
    path = numbered(tmp_path, lambda row: f"{-999 if row % 4 == 1 else row % 7},id{row},{row}.5")
    config = config_of_data(path, ["target=y", "drop=b", "missing=[-999]"])
    assert config.data.drop == ("b",)
    dataset = config.data.load()
    assert dataset.columns[0].missing > 0
    assert dataset.columns[0].mean > 0
    assert config_of_data(path, ["target=y", "drop=7"]).data.drop == ("7",)


def test_a_wrong_delimiter_is_named(tmp_path):
    path = numbered(tmp_path, lambda row: f"{row % 7};1;{row}", "a;b;y")
    with pytest.raises(DataError, match=r"has one column, 'a;b;y'; set data.delimiter=';'"):
        loaded(path, "y", delimiter=",")


def test_types_of_parquet_that_are_no_inputs_are_refused(tmp_path):
    frame = pd.DataFrame({"when": pd.date_range("2020-01-01", periods=30), "y": np.arange(30.0) % 7})
    with pytest.raises(DataError, match=r"column 'when' holds dates or times, such as '2020-01-01"):
        loaded(written(frame, tmp_path / "t.parquet"), "y")
    frame["when"] = [[1, 2]] * 30
    with pytest.raises(DataError, match=r"column 'when' holds list<.*leave it out with data.drop=\[when\]"):
        loaded(written(frame, tmp_path / "t.parquet"), "y")
    frame["when"] = np.where(np.arange(30) == 3, np.inf, 1.0)
    with pytest.raises(DataError, match="row 4 of column 'when' is inf, not finite; correct it"):
        loaded(written(frame, tmp_path / "t.parquet"), "y")


def test_categories_of_parquet_stay_categories(tmp_path):
    frame = pd.DataFrame({"zip": pd.Categorical([f"0{row % 3}" for row in range(30)]), "y": np.arange(30.0) % 7})
    assert loaded(written(frame, tmp_path / "t.parquet"), "y").columns[0].levels == ("00", "01", "02")


def test_features_and_embeddings_exclude_each_other(tmp_path):
    path = numbered(tmp_path, lambda row: f"{row % 7},{'ab'[row % 2]},{row}.5")
    with pytest.raises(ConfigError, match="features are made of one tensor"):
        read_config(path, ["target=y", "categories=embedding", "features.kind=principal_components"])
    dataset = read_config(path, ["target=y", "features={kind: principal_components, features: 2}"]).data.load()
    assert dataset.train.inputs.shape == (24, 2)


def test_a_table_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    path = numbered(tmp_path, lambda row: f"{row % 7},{'ab'[row % 2]},{row}.5")
    monkeypatch.setenv("BITSBACK_LIMIT_MEMORY", "100")
    with pytest.raises(DataError, match=r"asks for .* bytes of memory"):
        loaded(path, "y")


def test_the_extra_that_reads_tables_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("bitsback.extras.find_spec", lambda module: None)
    monkeypatch.delitem(sys.modules, "pyarrow", raising=False)
    path = numbered(tmp_path, lambda row: f"{row % 7},1,{row}")
    with pytest.raises(MissingExtraError, match=r"reading t.csv needs .*pip install 'bitsback\[tables\]'"):
        loaded(path, "y")


# --- configurations of data files


def test_a_table_needs_no_yaml(tmp_path):
    path = numbered(tmp_path, lambda row: f"{row % 7},1,{row}")
    config = config_of_data(path, ["target=y", "drop=[b]", "split.test=0.5", "seed=3", "training.epochs=2"])
    assert (config.data.kind, config.data.target, config.data.drop, config.data.split.test) == ("table", "y", ("b",), 0.5)
    assert config.data.path == path
    assert config.seed == 3
    assert config.training.epochs == 2
    assert config.model_fields_set == {"data", "seed", "training"}
    assert config_of_data(tmp_path / "digits.yaml") is None


def test_a_name_that_yaml_reads_as_a_number_is_a_name(tmp_path):
    path = table(tmp_path, "0,1", *(f"{row % 7},{row}" for row in range(30)))
    assert config_of_data(path, ["target=1"]).data.target == "1"


def test_faults_of_a_data_file_are_named(tmp_path):
    path = numbered(tmp_path, lambda row: f"{row % 7},1,{row}")
    with pytest.raises(DataError, match=r"there is no file .*none.csv"):
        config_of_data(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match=r"command line: targte: .*"):
        config_of_data(path, ["targte=y"])
    with pytest.raises(ConfigError, match=r"split: .*give a share of test rows"):
        config_of_data(path, ["target=y", "split={test: 0.2, column: b}"])
    (tmp_path / "config.yaml").touch()  # as in a run
    with pytest.raises(RunError, match="is a directory; to continue a run"):
        bitsback.train(str(tmp_path))


# --- runs, files, predictions


@pytest.fixture(scope="module")
def house_runs(tmp_path_factory):
    """A run on a .csv file and one on the same table as .parquet, each with its model file."""
    place = tmp_path_factory.mktemp("houses")
    torch.set_num_threads(1)
    for suffix in (".csv", ".parquet"):
        written(houses(), place / f"houses{suffix}")
        run = bitsback.train(
            str(place / f"houses{suffix}"),
            overrides=["target=price", *GAUSSIAN],
            out=place / f"run{suffix}",
            report=False,
            progress=False,
        )
        bitsback.save(run.experiment, place / f"model{suffix}.bb", progress=False)
    return place


def test_csv_and_parquet_give_one_ledger(house_runs):
    totals = [bitsback.load_run(house_runs / f"run{suffix}").ledger().net_bits for suffix in (".csv", ".parquet")]
    assert totals[0] == pytest.approx(totals[1], rel=1e-9)


def test_a_run_writes_its_columns_out_and_opens_again(house_runs):
    run = bitsback.load_run(house_runs / "run.csv")
    assert [one.name for one in run.config.data.columns] == ["area", "rooms", "city", "garden"]
    assert run.config.data.types == {"price": "number"}
    inputs = run.experiment().dataset.train.inputs
    assert torch.equal(inputs, loaded(house_runs / "houses.csv").train.inputs)
    assert any("levels, means and stds of the columns" in note for note in run.ledger().not_charged)


def test_the_columns_are_shown_once_in_training(tmp_path, capsys):
    path = written(houses(40), tmp_path / "houses.csv")
    run = bitsback.train(str(path), overrides=["target=price", *GAUSSIAN], out=tmp_path / "run", report=False)
    assert capsys.readouterr().err.count("what it is") == 1
    run.experiment.dataset.columns_text()
    bitsback.load_run(tmp_path / "run").experiment()
    assert "what it is" not in capsys.readouterr().err


@pytest.mark.parametrize("source", ["run.csv", "run.parquet", "model.csv.bb", "model.parquet.bb"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", "frame"])
def test_predictions_for_other_rows_in_any_order_of_columns(house_runs, tmp_path, source, suffix):
    new = houses(9, seed=5)[["garden", "city", "rooms", "area"]]
    new.loc[0, "city"], new.loc[1, "rooms"] = "Paris", None
    given = new if suffix == "frame" else written(new, tmp_path / f"new{suffix}")
    found = bitsback.predict(house_runs / source, given)
    e = bitsback.load_run(house_runs / "run.csv").experiment()
    train = houses().iloc[np.sort(np.random.default_rng(0).permutation(ROWS)[24:])]
    area, rooms = train.area.dropna(), train.rooms
    expected = np.stack(
        [
            (new.area.fillna(area.mean()) - area.mean()) / area.std(ddof=0),
            new.area.isna(),
            (new.rooms.fillna(rooms.mean()) - rooms.mean()) / rooms.std(ddof=0),
            *((new.city == level) for level in ("Bonn", "Oslo", "Rome")),
            new.city.isna(),
            new.garden,
        ],
        1,
    ).astype(np.float32)
    inputs = torch.from_numpy(expected)
    if source.startswith("run"):
        wanted = e.model.predict(inputs, 20, likelihood=e.likelihood, seed=e.config.seed).mean
    else:
        decoded = bitsback.load(house_runs / source)
        wanted = decoded.likelihood.predict(decoded(inputs)).double()
    torch.testing.assert_close(found.mean, wanted, rtol=1e-4, atol=1e-3)


def test_the_file_comes_back_with_predictions_beside_its_rows(house_runs, tmp_path):
    new = houses(9, seed=5).assign(mean=1, note="as it was").drop(columns="price")
    path = written(new, tmp_path / "new.csv")
    found = bitsback.predict(house_runs / "run.csv", path)
    found.save(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    with path.open() as file:
        given = list(csv.DictReader(file))
    assert [{name: row[name] for name in given[0]} for row in rows] == given  # text for text
    assert [float(row["predicted_mean"]) for row in rows] == pytest.approx(found.mean.flatten().tolist(), rel=1e-5)
    assert [float(row["low"]) < float(row["high"]) for row in rows] == [True] * 9
    found.save(tmp_path / "out.tsv")
    assert len((tmp_path / "out.tsv").read_text().splitlines()[0].split("\t")) == len(rows[0])


def test_parquet_comes_back_with_its_types(house_runs, tmp_path):
    new = houses(9, seed=5).drop(columns="price")
    found = bitsback.predict(house_runs / "model.parquet.bb", written(new, tmp_path / "new.parquet"))
    found.save(tmp_path / "out.parquet")
    back = pd.read_parquet(tmp_path / "out.parquet")
    pd.testing.assert_frame_equal(back[list(new.columns)], pd.read_parquet(tmp_path / "new.parquet"))
    assert back["mean"].tolist() == pytest.approx(found.mean.flatten().tolist(), rel=1e-5)


def test_targets_beside_the_inputs_get_bits(house_runs, tmp_path):
    new = houses(9, seed=5)
    found = bitsback.predict(house_runs / "run.csv", written(new, tmp_path / "new.csv"))
    alone = bitsback.predict(house_runs / "run.csv", new.drop(columns="price"))
    e = bitsback.load_run(house_runs / "run.csv").experiment()
    assert alone.bits is None
    assert found.bits.shape == (9,)
    torch.testing.assert_close(found.mean, alone.mean)
    again = e.model.predict(
        rows_of(new, e.config.data)[0],
        20,
        likelihood=e.likelihood,
        targets=torch.from_numpy(new.price.to_numpy().copy()),
        seed=0,
    )
    torch.testing.assert_close(found.bits, again.bits)
    blank = new.assign(price=np.nan)
    assert bitsback.predict(house_runs / "run.csv", written(blank, tmp_path / "blank.csv")).bits is None


def test_faults_of_rows_to_predict_for_are_named(house_runs, tmp_path):
    new = houses(9, seed=5)
    for source in ("run.csv", "model.csv.bb"):
        with pytest.raises(DataError, match=r"has no column 'city', which the network takes as an input; there are: area"):
            bitsback.predict(house_runs / source, written(new.drop(columns="city"), tmp_path / "new.csv"))
        odd = new.astype({"rooms": object})
        odd.loc[3, "rooms"] = "five"
        with pytest.raises(DataError, match=r"row 4 of column 'rooms' is 'five', no number"):
            bitsback.predict(house_runs / source, written(odd, tmp_path / "new.csv"))
        gap = new.copy()
        gap.loc[2, "price"] = None
        with pytest.raises(DataError, match=r"'price' has no value in row 3 of .*or leave the column out: predictions"):
            bitsback.predict(house_runs / source, written(gap, tmp_path / "new.csv"))


def test_labels_are_texts_and_their_bits_are_found(tmp_path):
    frame = houses(80)
    frame["dear"] = np.where(frame.price > frame.price.median(), "yes", "no")
    path = written(frame.drop(columns="price"), tmp_path / "dear.csv")
    run = bitsback.train(
        str(path),
        overrides=["target=dear", "training.epochs=3", "network.kind=sequential", "network.layers=[Flatten, Linear]"],
        out=tmp_path / "run",
        report=False,
        progress=False,
    )
    assert run.config.likelihood.labels == ("no", "yes")
    assert run.config.data.types == {"dear": "category"}
    bitsback.save(run.experiment, tmp_path / "model.bb", progress=False)
    for source in (tmp_path / "run", tmp_path / "model.bb"):
        found = bitsback.predict(source, path)
        assert {answer["class"] for answer in found.answers} <= {"no", "yes"}
        assert found.bits.shape == (80,)
        probability = found.mean[torch.arange(80), torch.from_numpy((frame.dear == "yes").to_numpy().astype(int))]
        torch.testing.assert_close(found.bits, -probability.log2(), rtol=1e-4, atol=1e-4)


def test_a_receiver_without_the_target_gets_the_labels(tmp_path):
    frame = houses(60).drop(columns="price").assign(dear=["yes", "no"] * 30)
    sent = written(frame, tmp_path / "dear.csv")
    here = written(frame.drop(columns="dear"), tmp_path / "inputs.csv")
    settings = ["target=dear", "training.epochs=2", "network.kind=sequential", "network.layers=[Flatten, Linear]"]
    bitsback.send(
        read_config(sent, [*settings, "training.precision=float64"]), payload=b"hello", out=tmp_path / "m.bbm", pad=True
    )
    got = bitsback.receive(tmp_path / "m.bbm", tmp_path / "got", [f"data.path={here}"])
    assert (tmp_path / "got" / "payload").read_bytes()[:5] == b"hello"
    assert got is not None
    order = np.sort(np.random.default_rng(0).permutation(60)[12:])
    assert np.load(tmp_path / "got" / "labels.npy").tolist() == frame.dear.to_numpy()[order].tolist()


def command(*words, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "bitsback", *words], cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_command_line_from_a_file_to_predictions(tmp_path):
    written(houses(60), tmp_path / "houses.csv")
    written(houses(5, seed=3).drop(columns="price"), tmp_path / "new.csv")
    refused = command("train", "houses.csv", cwd=tmp_path)
    assert refused.returncode
    assert "say which column of" in refused.stderr
    assert "area, rooms, city" in refused.stderr
    assert not list((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else True
    done = command(
        "train", "houses.csv", "target=price", *GAUSSIAN, "logging.report=false", "--out", "run", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["net_bits"] > 0
    assert "what it is" in done.stderr
    done = command("predict", "run", "--data", "new.csv", "--out", "out.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(pd.read_csv(tmp_path / "out.csv").columns[:5]) == ["area", "rooms", "city", "garden", "mean"]


NETWORK = """
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(5, 2), nn.Linear(6, 1)

    def forward(self, numbers, categories):
        return self.linear(torch.cat([numbers, self.embedding(categories).flatten(1)], 1))
"""


def test_embeddings_train_save_and_predict(tmp_path, monkeypatch):
    (tmp_path / "embedding_of_houses.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    factory = "embedding_of_houses:Network"
    settings = ["target=price", "categories=embedding", "likelihood.kind=gaussian", "training.epochs=2", "network.kind=factory"]
    run = bitsback.train(
        str(written(houses(60), tmp_path / "houses.csv")),
        overrides=[*settings, f"network.factory={factory}"],
        out=tmp_path / "run",
        report=False,
        progress=False,
    )
    bitsback.save(run.experiment, tmp_path / "model.bb", progress=False)
    new = houses(9, seed=5)
    new.loc[0, "city"] = "Paris"
    path = written(new, tmp_path / "new.csv")
    decoded = bitsback.load(tmp_path / "model.bb", f"network.factory={factory}")
    inputs = rows_of(path, run.config.data)[0][:]
    assert inputs["numbers"].shape == (9, 4)
    assert inputs["categories"].flatten().tolist()[0] == 0
    found = bitsback.predict(tmp_path / "model.bb", path, [f"network.factory={factory}"])
    torch.testing.assert_close(found.mean, decoded.likelihood.predict(decoded(inputs)).double(), rtol=1e-5, atol=1e-4)
    assert bitsback.predict(tmp_path / "run", path, draws=2).mean.numel() == 9


def test_predictions_without_a_table_are_written_as_tables_too(tmp_path):
    found = Prediction.of(BernoulliLikelihood(), [torch.tensor([2.0, -1.0])])
    found.save(tmp_path / "p.parquet")
    found.save(tmp_path / "p.tsv")
    wanted = [record["probability"] for record in found.records()]
    assert pd.read_parquet(tmp_path / "p.parquet")["probability"].tolist() == wanted
    assert pd.read_csv(tmp_path / "p.tsv", sep="\t")["probability"].tolist() == pytest.approx(wanted)
