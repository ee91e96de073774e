"""The jobs as a user runs them: processes, flags, files, exit status."""

import hashlib
import json
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file

from oasisgen import cluster, storage
from oasisgen.config.generate import Format, GenerateConfig
from oasisgen.config.pack import PackConfig
from oasisgen.data.description import DataSetDescription, LabelClass, PackedPart, Split
from oasisgen.data.pack import pack
from oasisgen.data.slices import DataSet, open_data_set
from oasisgen.errors import UserError
from oasisgen.pipelines import feeds
from oasisgen.pipelines.evaluate import evaluate_bundle
from oasisgen.pipelines.generate import generate
from oasisgen.pipelines.train import train
from oasisgen.quality.nearest import NEIGHBOURS
from oasisgen.quality.summary import read_summary
from oasisgen.sampling import formats
from oasisgen.sampling.parts import SUMMARY
from oasisgen.sampling.verify import verify
from oasisgen.training import history
from tests.conftest import described, digests, one_line, run_job, start_job, tiny, tiny_flags


@pytest.mark.parametrize(
    ("job", "flags", "said"),
    [
        (
            "train",
            "demo --data d --out o --vqvae.epoch 3",
            "Unrecognized options: --vqvae.epoch, 3; perhaps you meant --vqvae.epochs",
        ),
        ("train", "demo --data d --out o --vqvae.epochs 0", "vqvae.epochs is 0: must be at least 1"),
        ("train", "--data d --out o --dcgan.loss wasserstein", "Expected one of ('hinge', 'bce')"),
        ("train", "huge --data d --out o", "Available subcommands: demo, baseline, full"),
        ("train", "demo --data d", "--out"),
        ("generate", "--model m --out o --count 0", "count is 0: must be from 1 to"),
        ("generate", "--model m --out o --levels 500-600", "levels is 500-600: must be like 10-20,25"),
        ("generate", "--verify b --count 3", "Unrecognized options: --count"),
        ("evaluate", "--model m --data d --out o --split all", "Expected one of ('train', 'validate', 'test')"),
        ("pack", "--source s", "--out"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(job: str, flags: str, said: str) -> None:
    done = run_job(job, *flags.split())
    assert done.returncode == 2
    assert said in one_line(done.stderr), done.stderr
    assert done.stdout == ""


def test_help_documents_every_field() -> None:
    done = run_job("train", "demo", "--help")
    assert done.returncode == 0
    for text in ("--vqvae.epochs", "Passes over the training split", "--dcgan.latent-dim", "--cpus-per-worker"):
        assert text in done.stdout


def test_a_node_without_room_for_the_data_is_named(connected: str) -> None:
    cluster.require_store(10**6, 1)
    for cpus in (1, 1000):  # nobody who asks for so many would work there, but the driver holds the slices
        with pytest.raises(
            UserError, match=r"needs 1000000 GB .* node [0-9.]+ has \d+ GB: start its Ray with a larger"
        ):
            cluster.require_store(10**15, cpus)


def test_a_data_set_that_does_not_fit_into_memory_is_streamed_if_its_workers_fit(connected: str, data: DataSet) -> None:
    config = tiny(data, "run")
    assert feeds.choose(config, data) == "memory"
    parts = tuple(PackedPart(f"part-{n}.parquet", 1024, 2 * 10**7, "") for n in range(10**5))
    large = described(splits={name: Split(1024 * len(parts), {}, parts=parts) for name in ("train", "validate")})
    big = DataSet("big", large)
    assert feeds.choose(config, big) == "stream"
    with pytest.raises(UserError, match=r"needs 13422 GB of object store .*, or use --feed stream$"):
        feeds.require_room(replace(config, feed="memory"), big)
    labelled = DataSet("big", replace(large, label_classes=(LabelClass("none", 0), LabelClass("CSF", 1))))
    assert feeds.store_bytes(big, "stream") == 0
    assert feeds.store_bytes(labelled, "stream") == (8192 + 1024) * (65536 + 2 * 4096)  # however many there are
    cluster.require_memory(10**8, 1, 1)
    with pytest.raises(
        UserError, match=r"streaming needs 1000000 GB of memory per worker, but node .* lower --workers"
    ):
        cluster.require_memory(10**15, 1, 1)
    streaming = 16 * 1024 * 65536  # two windows of four shards, and eight more, each of 1,024 slices of 64 kB
    assert feeds.worker_bytes(DataSet("d", replace(large, splits=few(large, 20)))) == 10**9 + streaming + 20480 * 1000


def few(of: DataSetDescription, shards: int) -> dict[str, Split]:
    """Splits with the first shards only."""
    return {name: replace(split, slices=1024 * shards, parts=split.parts[:shards]) for name, split in of.splits.items()}


def test_a_missing_folder_is_one_line_and_exit_1(connected: str, tmp_path: Path) -> None:
    done = run_job("pack", "--source", str(tmp_path / "none"), "--out", str(tmp_path / "d"))
    assert (done.returncode, "no folder at" in one_line(done.stderr)) == (1, True)
    assert not (tmp_path / "d").exists()


def test_a_place_that_cannot_be_written_is_one_line(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file is not a folder; give another --out"):
        pack(PackConfig(str(raw), str(tmp_path / "file" / "d")))


def test_a_bucket_that_is_not_there_is_one_line_before_training(
    data: DataSet, s3: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="s3://no-such-bucket-here/runs/tiny: there is no such bucket; create it or"):
        train(tiny(data, "s3://no-such-bucket-here/runs/tiny"))
    assert capsys.readouterr().out == ""


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    raw: Path, data: DataSet, trained: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(trained, "*")
    assert pack(PackConfig(str(raw), place + "/data", dry_run=True)) is None
    assert train(replace(tiny(data, place + "/run"), feed="stream", dry_run=True)) is None
    assert generate(GenerateConfig(model=str(trained), out=place + "/batch", count=2500, dry_run=True)) is None
    assert train(replace(tiny(data, trained), dry_run=True)) is None
    said = capsys.readouterr().out
    for line in (
        "train: 96 slices of 3 cases",
        "vqvae: 2 epochs x 6 steps of 16 slices = 12 steps",
        "trained before; that stage is left out",
        "the run would be a new one",
        "2500 slices in 3 parts, 0 made, about 48 MB",
        "the run is finished",
        "slices are streamed from storage, with at most 2 GB of memory per worker",
    ):
        assert line in said
    assert not storage.exists(place + "/data")
    assert not storage.exists(place + "/run")
    assert not storage.exists(place + "/batch")
    assert digests(trained, "*") == before


def test_a_run_leaves_what_the_layout_promises(trained: Path) -> None:
    files = {str(file.relative_to(trained)) for file in trained.rglob("*") if file.is_file()}
    assert {
        "config.json",
        "codes/train/part-00000.parquet",
        "metrics/vqvae.jsonl",
        "metrics/features.jsonl",
        "metrics/dcgan.jsonl",
        "metrics/labels.jsonl",
        "model/config.json",
        "model/vqvae.safetensors",
        "model/features.safetensors",
        "model/dcgan.safetensors",
        "model/labels.safetensors",
        "model/metrics.json",
        "model/README.md",
        "report/index.html",
    } <= files
    codes = pq.read_table(trained / "codes" / "train" / "part-00000.parquet")
    assert len(codes) == 96
    assert len(codes["codes"][0].as_py()) == 2 * 64 * 64
    page = (trained / "report" / "index.html").read_text()
    assert page.count("<img") == 8
    assert "://" not in page.replace("http://www.w3.org", "")  # nothing to fetch


def test_a_finished_run_returns_at_once_and_another_configuration_is_refused(
    data: DataSet, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, config = digests(trained, "*"), tiny(data, trained)
    train(config)
    assert capsys.readouterr().out == ""
    other = replace(config, seed=3, feed="stream", vqvae=replace(config.vqvae, learning_rate=0.5))
    with pytest.raises(
        UserError, match=r"\(feed memory -> stream; seed 0 -> 3; vqvae.learning_rate 0.004 -> 0.5\): use another --out"
    ):
        train(other)
    assert digests(trained, "*") == before


@pytest.mark.slow
def test_a_damaged_bundle_is_mended_by_the_command_that_made_it(
    data: DataSet, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    weights = run / "model" / "vqvae.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    train(tiny(data, run))
    assert "epoch" not in capsys.readouterr().out
    assert weights.read_bytes() == whole


def stop_in(stage: str, how: signal.Signals, flags: list[str]) -> int:
    """Start a training job, stop it after the first epoch of a stage; its exit status."""
    process = start_job("train", *flags)
    assert process.stdout
    for line in process.stdout:
        if f"[{stage:>8}] epoch 1/2" in line and "codes" in line:
            process.send_signal(how)
            break
    process.communicate()
    return process.returncode


@pytest.mark.slow
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    data: DataSet, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in stage 1, its newest checkpoint cut short; Ctrl-C in stage 2; the same command does the rest, to the
    same weights and metrics in the same steps. The data set has no feature network yet."""
    out, copy = tmp_path / "tiny", str(tmp_path / "data")
    shutil.copytree(data.uri, copy, ignore=shutil.ignore_patterns("features"))
    flags = tiny_flags(copy, out)
    assert stop_in("vqvae", signal.SIGKILL, flags) == -signal.SIGKILL
    newest = max((out / "vqvae").glob("checkpoint_*/state.pt"))
    newest.write_bytes(newest.read_bytes()[:10_000])
    assert stop_in("dcgan", signal.SIGINT, flags) == 130
    assert not (out / "report").exists()
    train(tiny(open_data_set(copy), out))
    assert "[   vqvae]" not in capsys.readouterr().out  # that stage was done
    for name in ("vqvae", "features", "labels", "dcgan"):
        epochs, whole = (history.read(str(run / "metrics"), name) for run in (out, trained))
        for epoch, same in zip(epochs, whole, strict=True):
            assert epoch.metrics == pytest.approx(same.metrics, abs=1e-6)
            assert replace(epoch, metrics={}, slices_per_s=0) == replace(same, metrics={}, slices_per_s=0)
        weights, expected = (load_file(run / "model" / f"{name}.safetensors") for run in (out, trained))
        assert all(np.array_equal(weights[key], expected[key]) for key in expected)


def test_a_batch_is_complete_and_says_what_it_is(batch: Path, trained: Path) -> None:
    rows = pq.read_table(batch / "summary" / "part-00000.parquet").to_pylist()
    assert [row["id"] for row in rows] == list(range(40))
    assert [row["level"] for row in rows] == [number % 32 for number in range(40)]
    for row in rows:
        data = (batch / row["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        labels = (batch / row["labels_file"]).read_bytes()
        assert hashlib.sha256(labels).hexdigest() == row["labels_sha256"]
        assert 0 < row["ssim_real"] < 1
        assert 0 < row["ssim_train_max"] < 1
        assert abs(row["nearest_level"] - row["level"]) <= NEIGHBOURS
    image = Image.open(batch / rows[33]["file"])
    assert (image.mode, image.size) == ("L", (256, 256))
    digest = hashlib.sha256((trained / "model" / "config.json").read_bytes()).hexdigest()
    assert (image.text["Comment"], image.text["id"], image.text["model"]) == ("SYNTHETIC", "33", digest)  # type: ignore

    labels_of_33 = Image.open(batch / rows[33]["labels_file"])
    assert (labels_of_33.mode, labels_of_33.size) == ("P", (256, 256))

    manifest = json.loads((batch / "manifest.json").read_text())
    assert [of["name"] for of in manifest["label_classes"]] == ["background", "CSF", "grey matter", "white matter"]
    assert (manifest["model"], manifest["base_seed"], manifest["count"]) == (digest, 5, 40)
    part = hashlib.sha256((batch / "summary" / "part-00000.parquet").read_bytes()).hexdigest()
    assert [entry["sha256"] for entry in manifest["parts"]] == [part]
    summary = json.loads((batch / "summary.json").read_text())
    assert summary["verdict"] == manifest["verdict"] == "quarantined"  # after twelve steps of training
    assert "unlike real slices: fid is" in " ".join(summary["reasons"])
    assert summary["measures"]["ssim_real"]["value"] == pytest.approx(np.mean([row["ssim_real"] for row in rows]))
    assert 0.3 < summary["measures"]["ssim_train_max"]["floor"] < 1.0  # real against real
    assert 0.0 < summary["measures"]["tissue_area"]["floor"] < 0.5  # 40 slices of each: about one per level
    assert 0.5 < summary["measures"]["label_fit"]["floor"] < 1.0
    assert (batch / "report" / "index.html").stat().st_size > 100_000


def test_other_requests_make_the_same_bytes_for_the_same_ids(batch: Path, trained: Path, tmp_path: Path) -> None:
    everything = digests(batch, "*.png")
    model = str(trained)
    some: dict[str, Any] = {"base_seed": 5, "measure": False}
    for name, config, ids in (
        ("levels", GenerateConfig(model, "", count=6, levels="2-4", part_size=4, **some), [2, 3, 4, 34, 35, 36]),
        ("ids", GenerateConfig(model, "", ids="39,17,3-5", **some), [3, 4, 5, 17, 39]),
    ):
        out = tmp_path / name
        summary = generate(replace(config, out=str(out)))
        assert summary
        assert (summary.verdict, summary.reasons) == ("quarantined", ("it was not measured",))
        mine = digests(out, "*.png")
        for folder in ("slices", "labels"):
            assert sorted(int(Path(file).stem) for file in mine if file.startswith(folder)) == ids
        assert all(everything[file] == digest for file, digest in mine.items())


def test_a_batch_without_label_maps_has_the_same_slices_and_no_word_of_them(
    batch: Path, trained: Path, tmp_path: Path
) -> None:
    generate(GenerateConfig(str(trained), str(tmp_path), count=20, base_seed=5, measure=False, labels=False))
    everything = digests(batch, "*.png")
    mine = digests(tmp_path, "*.png")
    assert len(mine) == 20
    assert all(everything[file] == digest for file, digest in mine.items())
    assert not (tmp_path / "labels").exists()
    assert pq.read_table(tmp_path / "summary").schema.names == SUMMARY.names
    for name in ("config.json", "summary.json", "manifest.json"):
        assert "label" not in (tmp_path / name).read_text()
    assert verify(str(tmp_path)).request.label_classes == ()


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_other_formats_hold_the_same_pngs(kind: Format, batch: Path, trained: Path, tmp_path: Path) -> None:
    config = GenerateConfig(
        str(trained), str(tmp_path), count=20, part_size=16, base_seed=5, format=kind, measure=False
    )
    first = generate(config)
    rows = pq.read_table(tmp_path / "summary").select(["id", "file", "labels_file", "sha256"])
    assert len(rows) == 20
    expected = {row["id"]: row["sha256"] for row in pq.read_table(batch / "summary").to_pylist()}
    assert all(expected[row["id"]] == row["sha256"] for row in rows.to_pylist())
    columns: dict[formats.What, str] = {"png": "sha256", "labels": "labels_sha256"}
    for what, column in columns.items():
        expected = {row["id"]: row[column] for row in pq.read_table(batch / "summary").to_pylist()}
        pngs = dict(formats.read_pngs(str(tmp_path), kind, rows, what))
        assert all(hashlib.sha256(pngs[number] or b"").hexdigest() == expected[number] for number in range(20))
    assert verify(str(tmp_path)).request.count == 20
    assert not list(tmp_path.rglob("*.png"))
    for name in ("summary/part-00001.parquet", "manifest.json"):
        (tmp_path / name).unlink()
    resumed = generate(config)
    assert first
    assert resumed
    assert [(summary.slices, summary.made) for summary in (first, resumed)] == [(20, 20), (20, 4)]


def test_a_model_whose_slices_are_all_refused_ends_and_says_so(trained: Path, tmp_path: Path) -> None:
    config = GenerateConfig(str(trained), str(tmp_path / "b"), count=16, reject="outliers")
    summary = generate(config)
    assert summary
    assert (summary.slices, summary.rejected) == (0, 32)
    assert summary.reasons[0] == "only 0 slices were left of 32 tried"
    assert not list(tmp_path.rglob("*.png"))
    rejected = pq.read_table(tmp_path / "b" / "rejected").to_pylist()
    assert [row["id"] for row in rejected] == list(range(32))
    assert all("unlike real slices: ssim_real" in row["refused"] for row in rejected)
    assert verify(str(tmp_path / "b")).verdict == "quarantined"


def test_generating_again_returns_at_once_and_another_request_is_refused(batch: Path, trained: Path) -> None:
    before, config = digests(batch, "*"), GenerateConfig(str(trained), str(batch), count=40, base_seed=5)
    assert generate(config) == read_summary(str(batch))
    with pytest.raises(UserError, match="base_seed 5 -> 6"):
        generate(replace(config, base_seed=6))
    assert digests(batch, "*") == before


def test_a_batch_that_is_touched_does_not_verify(batch: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(batch, tmp_path / "batch"))
    done = run_job("generate", "--verify", str(copy))
    assert (done.returncode, "40 slices in 1 parts, all there" in done.stdout) == (0, True), done.stderr
    slices = sorted((copy / "slices" / "0").iterdir())
    slices[3].unlink()
    slices[5].write_bytes(slices[6].read_bytes())
    (copy / "slices" / "0" / "0000000099.png").write_bytes(b"")
    wrong = (
        "slice 3 is missing from .*03.png; slice 5 in .*05.png is changed; slices/0/0000000099.png belongs to no part"
    )
    with pytest.raises(UserError, match=wrong):
        verify(str(copy))
    part = copy / "summary" / "part-00000.parquet"
    part.write_bytes(part.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"manifest: summary/part-00000\.parquet is changed: generate it again"):
        verify(str(copy))
    part.unlink()
    with pytest.raises(UserError, match=r"part-00000\.parquet is missing"):
        verify(str(copy))
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no finished batch at .*: run the command that makes it"):
        verify(str(copy))


def test_a_damaged_bundle_is_one_line(trained: Path, connected: str, tmp_path: Path) -> None:
    model = Path(shutil.copytree(trained / "model", tmp_path / "model"))
    weights = model / "dcgan.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"dcgan\.safetensors is truncated or changed"):
        generate(GenerateConfig(str(model), str(tmp_path / "b"), count=4))
    assert not (tmp_path / "b").exists()


def test_evaluation_is_the_one_in_the_bundle_and_is_not_overwritten(
    data: DataSet, trained: Path, tmp_path: Path
) -> None:
    flags = ["--model", str(trained), "--data", data.uri, "--out", str(tmp_path / "e")]
    done = run_job("evaluate", *flags)
    assert (done.returncode, done.stderr) == (0, "")  # its actors are what Ray's core has something to say about
    summary = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    inside = json.loads((trained / "model" / "metrics.json").read_text())["reconstruction"]
    assert {name: summary[name] for name in inside} == inside
    table = pq.read_table(tmp_path / "e" / "slices.parquet")
    assert len(table) == summary["slices"] == 64
    assert summary["ssim"]["mean"] == pytest.approx(np.mean(table["ssim"].to_numpy()))
    assert f"SSIM         {summary['ssim']['mean']:.4f}" in done.stdout

    before = digests(tmp_path / "e", "*")
    scores = evaluate_bundle(str(trained), data, "validate", str(tmp_path / "e"))
    assert asdict(scores) | {"model": summary["model"]} == summary
    with pytest.raises(UserError, match="split validate -> train"):
        evaluate_bundle(str(trained), data, "train", str(tmp_path / "e"))
    assert digests(tmp_path / "e", "*") == before


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    flags = ["--source", str(tmp_path), "--out", str(tmp_path / "d")]
    done = run_job("pack", *flags, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1
    assert "no Ray at RAY_ADDRESS=127.0.0.1:1 (nothing answers there)" in one_line(done.stderr)
