"""`mllm data …`: generates, imports, checks and shows data."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_prep.show import show
from mllm.errors import MllmError

EngineOption = Annotated[
    Literal["local", "ray"], typer.Option(help="local: processes here; ray: a Ray cluster, see RAY_ADDRESS.")
]

app = typer.Typer(help="Make and look at data.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Make and look at data."""


app.command()(show)


@app.command()
def world(
    out: Annotated[
        Path | None, typer.Option(help="New folder for clips/, records.jsonl and pairs.jsonl.")
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 1000,
    split: Annotated[str, typer.Option(help="train, val or comp (combinations never trained).")] = "train",
    seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
    questions: Annotated[int, typer.Option(min=1, help="Most questions about a scene.")] = 4,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each core unless given.")
    ] = None,
    array_speed: Annotated[
        bool, typer.Option("--array-speed", help="Only measure clips per second.")
    ] = False,
    balance: Annotated[bool, typer.Option("--balance", help="Only count questions and answers.")] = False,
) -> None:
    """Write a generated world of moving shapes and sounds, with questions about it, as media files."""
    from data_prep.world.source import WorldSource

    source = WorldSource(split, seed=seed, clips=clips, questions_per_clip=questions)
    if array_speed:
        _print_speed(source)
    if balance:
        _print_balance(source)
    if out is not None:
        _write(source, out, workers)
    elif not (array_speed or balance):
        raise MllmError("no folder to write to: add --out DIR")


@app.command()
def small(
    sets: Annotated[Path, typer.Argument(help="Folder that holds the open sets: real_esc10, fsdd, …")],
    out: Annotated[Path, typer.Option(help="Folder for train.jsonl, val.jsonl, test_*.jsonl and media/.")],
    seed: Annotated[int, typer.Option(help="Another seed, other phrasings and mixtures.")] = 0,
    without: Annotated[
        list[str] | None, typer.Option(help="Name of a set to leave out; again for each further one.")
    ] = None,
    chat: Annotated[
        int, typer.Option(min=0, help="Conversations without a recording, answered by the base.")
    ] = 1500,
    base: Annotated[
        str, typer.Option(help="The decoder that answers them: a name, or a folder.")
    ] = "smollm2-135m",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each core unless given.")
    ] = None,
) -> None:
    """Write the data of the checkpoint `small`: real recordings, mixtures of them, and chat."""
    from rich.progress import track

    from data_prep.small.write import write_small

    progress = partial(track, description="writing")
    written = write_small(sets, out, seed, without or [], chat, base, workers, progress)
    asked = sum(written.tasks.values())
    for task, count in sorted(written.tasks.items(), key=lambda item: -item[1]):
        typer.echo(f"{task:<14} {count:>6}  {count / asked:6.1%}")
    typer.echo(", ".join(f"{name}.jsonl {count}" for name, count in written.rows.items()))


@app.command(name="import")
def import_command(
    name: Annotated[str, typer.Argument(help="Data set or form: see `mllm data formats`.")],
    out: Annotated[Path, typer.Option(help="Folder for records.jsonl and import.json.")],
    annotations: Annotated[
        list[Path] | None,
        typer.Option(help="Annotation file, or a folder of them; again for each further one."),
    ] = None,
    media: Annotated[Path | None, typer.Option(help="Folder that holds the recordings.")] = None,
    localised: Annotated[
        bool, typer.Option("--localised", help="Ask about the annotated span of a video, not all of it.")
    ] = False,
    held_out: Annotated[
        list[str] | None, typer.Option(help="LABEL=VALUES, such as actor=17-20: these go to held_out.jsonl.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of annotations that are not in UTF-8, such as gb18030.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(help="Of a table: ROLE=COLUMN, such as file=clip_path,answer=label,options=a0+a1."),
    ] = None,
    stretch: Annotated[
        float, typer.Option(min=1, help="Of a timed transcript: most seconds that one record has.")
    ] = 30.0,
) -> None:
    """Turn annotations as people have them into conversation records."""
    from data_prep.importers.write import import_records, parse_held_out

    held = parse_held_out(held_out or [])
    report = import_records(
        name, annotations or [], media, out, localised, held, encoding, columns or [], stretch
    )
    held_out_note = f", {report.held_out} held out" if report.held_out else ""
    typer.echo(f"{report.records} records in {out}{held_out_note}; next: mllm data check {out}")
    for reason, count in report.left_out.items():
        typer.echo(f"left out: {count} × {reason}")
    for what, count in report.noted.items():
        typer.echo(f"noted: {count} × {what}")
    if report.media is None:
        typer.echo("recordings were not looked for: give --media their folder")
    elif report.missing:
        typer.echo(
            f"not found in {report.media}: {len(report.missing)} recordings, the first {report.missing[0]}"
        )


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A JSONL file of records, or a folder of them.")],
    against: Annotated[
        list[Path] | None, typer.Option(help="Another split, which must not share a recording with it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for check.json and check.html.")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Write what is right to <name>.fixed.jsonl.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each core unless given.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until a recording counts as hung.")] = 60,
    engine: EngineOption = "local",
) -> None:
    """Find what training would stumble over: bad rows, damaged recordings, splits that overlap."""
    from rich.console import Console

    from data_prep import check_report
    from data_prep.check import check as run
    from data_prep.check_rows import record_files

    files, made = record_files([path, *(against or [])])
    if made:
        names = ", ".join(file.name for file in made)
        typer.echo(f"not checked: {names} (made of other files, or beside them: name one to have it checked)")
    checked = run(files, workers, timeout, engine, _track("Looking"))
    out = out or (path if path.is_dir() else path.parent)
    if checked.findings:
        Console().print(check_report.table(checked))
    counts = check_report.summary(checked)
    typer.echo(
        f"{counts['rows']} rows, {counts['recordings']} recordings ({counts['with_picture']} with picture, "
        f"{counts['with_sound']} with sound, {counts['rotated']} rotated, {counts['seconds'] / 3600:.2f} h): "
        f"{counts['errors']} errors, {counts['warnings']} warnings; {out / 'check.html'}"
    )
    check_report.write_json(checked, out / "check.json")
    title = ", ".join("/".join(file.parts[-2:]) for file in files)
    check_report.write_page(checked, out / "check.html", title)
    if fix:
        from data_prep.check_fix import fix as write_fixed

        for fixed, done in write_fixed(checked).items():
            counted = ", ".join(f"{count} {what}" for what, count in done.items())
            if done["kept"]:
                typer.echo(f"{fixed}: {counted}")
            else:
                typer.echo(
                    f"error: {fixed}: no row is left to write ({counted}): mend the rows by hand", err=True
                )
    if counts["errors"] or (strict and counts["warnings"]):
        raise typer.Exit(1)


@app.command()
def build(
    config: Annotated[Path, typer.Argument(help="Experiment whose data.train and data.val are built.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="a.b=value")] = None,
    out: Annotated[Path, typer.Option(help="Folder; each record file gets one of its name in it.")] = Path(
        "data/shards"
    ),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each core unless given.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Build afresh what is there.")] = False,
    engine: EngineOption = "local",
) -> None:
    """Decode recordings once, at the model's size, into shards that training maps into memory."""
    from data_prep.shard_build import Storage, make_plan
    from data_prep.shard_build import build as run
    from mllm.experiment import load_experiment
    from mllm.models.build import window_spec
    from mllm.models.checkpoint import load_processor

    experiment = load_experiment(config, overrides or [])
    shards = experiment.data.shards
    start = experiment.start
    spec = window_spec(experiment.model) if start is None else load_processor(start).spec
    storage = Storage(spec, shards.frames, shards.quality)
    files = [
        (key, Path(name))
        for key, name in (("train", experiment.data.train), ("val", experiment.data.val))
        if name.endswith(".jsonl")
    ]
    if not files:
        raise MllmError(
            f"{config}: data.train is {experiment.data.train}, data.val {experiment.data.val}: name a JSONL "
            "file of records in one; generated worlds need no shards"
        )
    same_stem = len({file for _, file in files}) > len({file.stem for _, file in files})
    for key, file in files:
        folder = out / (f"{file.parent.name}-{file.stem}" if same_stem else file.stem)
        plan = make_plan(file, storage, shards.size)
        decoded = run(plan, str(file), folder, workers, restart, engine, _bar(file.name), typer.echo)
        size = sum(path.stat().st_size for path in folder.iterdir())
        typer.echo(
            f"{folder}: {len(plan.records)} records, {sum(map(len, plan.stretches))} recordings "
            f"({decoded} decoded now), {size / 1e6:.1f} MB; in the experiment: data.{key}={folder}"
        )


@app.command()
def features(
    config: Annotated[Path, typer.Argument(help="Experiment whose data.train and data.val are read.")],
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint or run folder whose towers are frozen. Default: `start`, or bases."),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="a.b=value")] = None,
    engine: EngineOption = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a model of its own.")] = 1,
) -> None:
    """Run frozen towers once over all recordings and keep what they give: training then runs none."""
    from data_prep.features import fill, untrained
    from mllm.experiment import Cache, load_experiment

    experiment = load_experiment(config, overrides or [])
    model = model or experiment.start
    settings = experiment.data.cache or Cache()
    names = [name for name in (experiment.data.train, experiment.data.val) if not name.startswith("world:")]
    if not names:
        raise MllmError(f"{config}: data.train and data.val are generated worlds, which never repeat a clip")
    with nullcontext(model) if model else untrained(experiment.model) as frozen:
        for name in names:
            new, old = fill(
                frozen, name, Path(settings.folder), settings.max_gb, engine, workers, _track(name)
            )
            typer.echo(
                f"{name}: {new} windows and chunks computed, {old} were there; in the experiment: "
                f"data.cache.folder={settings.folder}"
            )


@app.command()
def transcribe(
    path: Annotated[Path, typer.Argument(help="A JSONL file of records.")],
    model: Annotated[str, typer.Option(help="A base, a hub id or a folder of Whisper.")] = "whisper-base",
    language: Annotated[
        str | None, typer.Option(help="Such as en; detected by the model unless given.")
    ] = None,
    engine: EngineOption = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a model of its own.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder; that of the records unless given.")] = None,
) -> None:
    """Write down what is said, with times, and put it before the questions as subtitles."""
    from data_prep.transcribe import TRANSCRIPTS, Whisper, load_whisper
    from data_prep.transcribe import transcribe as run

    out = out or path.parent
    if engine == "local" and workers == 1:
        load_whisper(model, language)  # reports an unknown name before anything is read
    transcriber = Whisper(model, language)
    new, old = run(
        path, transcriber, out, engine, workers, _track("Listening"), partial(typer.echo, err=True)
    )
    typer.echo(f"{out / TRANSCRIPTS}: {new} recordings transcribed, {old} were there")
    typer.echo(f"{out / f'{path.stem}.subtitled.jsonl'}: the records with subtitles")


def _track(name: str):
    """A progress bar over a known number of items, with the time left."""

    def progress(items, total: int):
        from rich.progress import track

        return track(items, description=name, total=total)

    return progress


def _bar(name: str):
    """A progress bar over shards that counts recordings, with their rate and the time left."""

    def progress(counts, done: int, total: int):
        from tqdm import tqdm

        with tqdm(total=total, initial=done, desc=name, unit=" recordings") as bar:
            for count in counts:
                bar.update(count)
                yield count

    return progress


@app.command()
def formats() -> None:
    """List what `mllm data import` reads, with the fields that it needs."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from data_prep.importers import all_importers, loaded

    table = Table("name", "fields", "what to give")
    failed = []
    for name, importer in all_importers().items():
        try:
            found = loaded(importer)
        except MllmError as error:
            failed.append(str(error))
            continue
        table.add_row(name, escape(found.fields), escape(found.about))
    Console().print(table)
    for line in failed:
        typer.echo(line, err=True)


def _write(source, out: Path, workers: int | None) -> None:
    from rich.progress import track

    from data_prep.world.write import write_world

    def progress(scenes):
        return track(scenes, description=f"Writing {source.name}", total=len(source))

    written = write_world(out, source, workers=workers, progress=progress)
    typer.echo(f"{written.recordings} recordings and {written.records} questions in {out}")


def _print_speed(source) -> None:
    """Clips per second as arrays, in one process, after a first pass that fills the voice bank."""
    import time

    clips = range(len(source))
    rates = []
    for _ in range(2):
        start = time.perf_counter()
        for index in clips:
            source.conversations(index)
        rates.append(len(clips) / (time.perf_counter() - start))
    typer.echo(f"{rates[1]:.0f} clips/s as arrays in one process ({rates[0]:.0f} while the voices were made)")


def _print_balance(source) -> None:
    from rich.console import Console
    from rich.table import Table

    from data_prep.world.balance import balance_table

    table = Table("type", "questions", "share", "answers", "majority", "limit", "commonest answer")
    for row in balance_table(source):
        limit = "" if row.limit is None else f"{row.limit:.3f}"
        cells = (f"{row.questions}", f"{row.share:.3f}", f"{row.answers}", f"{row.majority:.3f}", limit)
        table.add_row(row.type, *cells, row.commonest)
    Console(width=None).print(table)
