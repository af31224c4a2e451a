"""`forethought export`: the answers and pairs of an iteration, for other tools."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Annotated

import typer

from services.cli.api.client import Client, Object
from services.cli.api.connect import connect
from services.cli.errors import CliError
from services.cli.machine.datadir import DEFAULT, DataDir
from services.cli.output import exports
from services.cli.output.console import DataOption, out, readable_errors
from shared.thinking.formats import ThoughtFormat

app = typer.Typer(
    no_args_is_help=True, help="Write answers and pairs in the formats of other tools."
)


class Whose(StrEnum):
    result = "result"
    parent = "parent"
    seed = "seed"


IterationArgument = Annotated[str, typer.Argument(metavar="ITERATION", help="Id of the iteration.")]
WhoseOption = Annotated[
    Whose,
    typer.Option(
        "--of", help="Model whose answers are written: the new one, its parent or the seed."
    ),
]
FileOption = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="File to write.")]
FolderOption = Annotated[
    Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write to.")
]


@app.command("alpaca-eval")
def alpaca_eval(
    iteration: IterationArgument,
    output: FileOption,
    of: WhoseOption = Whose.result,
    data_dir: DataOption = DEFAULT,
) -> None:
    """Write validation answers as AlpacaEval's `--model_outputs` (or `--reference_outputs`)."""
    with readable_errors():
        client, found = _find(iteration, data_dir)
        generator = _name(client, found, of)
        answers = exports.one_each(_answers(client, iteration, of))
        with _written(output) as file:
            for piece in exports.alpaca_eval(answers, generator, found["config"]["dataset"]):
                file.write(piece)
        out.print(f"{output}: answers of {generator}", markup=False)


@app.command("arena-hard")
def arena_hard(
    iteration: IterationArgument,
    output: FolderOption,
    of: WhoseOption = Whose.result,
    questions: Annotated[
        Path | None,
        typer.Option(help="A question.jsonl. Only its prompts are written, with its uids."),
    ] = None,
    data_dir: DataOption = DEFAULT,
) -> None:
    """Write validation answers as Arena-Hard-Auto's data: question.jsonl and model_answer."""
    with readable_errors():
        client, found = _find(iteration, data_dir)
        uids = None if questions is None else _uids(questions)
        name, at = _name(client, found, of), float(found["finished_at"] or found["created_at"])
        file = output / "model_answer" / f"{name}.jsonl"
        written = skipped = 0
        with ExitStack() as files:
            answered = files.enter_context(_written(file))
            asked = (
                files.enter_context(_written(output / "question.jsonl")) if uids is None else None
            )
            for answer in exports.one_each(_answers(client, iteration, of)):
                own = exports.uid(answer["prompt"])
                uid = own if uids is None else uids.get(answer["prompt"])
                if uid is None:
                    skipped += 1
                    continue
                _line(answered, exports.arena_hard_answer(answer, name, uid, at))
                if asked is not None:
                    _line(asked, exports.arena_hard_question(answer))
                written += 1
        more = f"; {skipped} left out, not in {questions}" if skipped else ""
        out.print(f"{file}: {written} answers{more}", markup=False)


@app.command()
def preferences(
    iteration: IterationArgument,
    output: FolderOption,
    with_thoughts: Annotated[
        bool,
        typer.Option(
            "--with-thoughts",
            help="Write whole outputs. Needs a key with the scope `thoughts`.",
        ),
    ] = False,
    data_dir: DataOption = DEFAULT,
) -> None:
    """Write the pairs as a Hugging Face preference dataset with its card."""
    with readable_errors():
        client, found = _find(iteration, data_dir)
        fmt = ThoughtFormat.model_validate(found["config"]["thought_format"])
        written = left_out = 0
        with _written(output / "preferences.jsonl") as file:
            for pair in client.rows(f"/iterations/{iteration}/pairs"):
                row = exports.preference(pair, fmt if with_thoughts else None)
                if row is None:
                    left_out += 1
                    continue
                _line(file, row)
                written += 1
        with _written(output / "README.md") as file:
            file.write(exports.card(found, written, left_out, with_thoughts))
        more = f"; {left_out} pairs left out, without two different answers" if left_out else ""
        out.print(f"{output}: {written} pairs{more}", markup=False)


def _find(iteration: str, data_dir: Path) -> tuple[Client, Object]:
    client = connect(DataDir(data_dir))
    found = client.iteration(iteration)
    if found is None:
        raise CliError(f"no iteration {iteration}")
    return client, found


def _answers(client: Client, iteration: str, of: Whose) -> Iterator[Object]:
    return client.rows(f"/iterations/{iteration}/answers", model=of.value)


def _name(client: Client, iteration: Object, of: Whose) -> str:
    """Return the model's reference, such as `thinker@v1`, or its id if it has no name."""
    id_ = iteration[f"{of}_model"]
    if id_ is None:
        raise CliError(f"iteration {iteration['id']} is {iteration['status']}: no {of} model yet")
    model = client.model(id_) or {}
    return str(model.get("ref") or id_)


def _uids(questions: Path) -> dict[str, str]:
    try:
        with questions.open() as lines:
            return exports.uids_of(lines)
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"questions: {error}") from None


def _line(file: IO[str], row: Object) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _written(path: Path) -> Iterator[IO[str]]:
    """Open a file that appears only when it is complete. Makes its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False)  # noqa: SIM115
    except OSError as error:
        raise CliError(f"output: {error}") from None
    try:
        with file:
            yield file
        os.replace(file.name, path)
    except BaseException as error:
        Path(file.name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CliError(f"output: {error}") from None
        raise
