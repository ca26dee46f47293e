"""The verbs of the `minit2v` command that belong to the course: check, hint, solution, progress, grade.

Part of cli.py, where the rules of the command line stand.
"""

import json
from pathlib import Path


def check(args) -> int:
    """Checks the exercises of one chapter in a notebook."""
    from minit2v.course import exercise as judging
    from minit2v.course.grading import judge_notebooks, row
    from minit2v.course.learner import note

    mine = [e for e in judging.exercises().values() if e.chapter == args.chapter]
    if not mine:
        raise ValueError(f"chapter {args.chapter:02d} has no exercises; there are some for "
                         f"{sorted({e.chapter for e in judging.exercises().values()})}")
    path = args.notebook or next(iter(sorted(Path("exercises").glob(f"{args.chapter:02d}_*.ipynb"))), None)
    if path is None or not path.exists():
        raise FileNotFoundError(f"{path or f'exercises/{args.chapter:02d}_*.ipynb'} is not there; name the notebook: "
                                f"minit2v check {args.chapter} NOTEBOOK")
    found = []
    for exercise in mine:
        found.append(row(exercise, *judge_notebooks([path], exercise)))
        note(exercise.name, outcome=found[-1]["outcome"])
    if args.json:
        print(json.dumps(found))
    else:
        for one in found:
            print(f"{one['exercise']:20} {one['outcome']}"
                  + (f"\n    {one['message']}" if one["outcome"] != judging.RIGHT else ""))
        print(f"{sum(one['points'] for one in found)} of {sum(one['max_points'] for one in found)} points")
    return 0 if all(one["outcome"] == judging.RIGHT for one in found) else 1


def hint(args) -> int:
    """Gives the next hint of an exercise."""
    from minit2v.course import learner

    print(learner.hint(args.exercise))
    return 0


def solution(args) -> int:
    """Shows the solution of an exercise."""
    from minit2v.course import learner

    print(learner.solution(args.exercise, now=args.now))
    return 0


def progress(args) -> int:
    """Shows what is solved so far."""
    from minit2v.course import learner

    print(learner.progress())
    return 0


def grade(args) -> int:
    """Grades a folder of hand-ins, one folder for each, into a table."""
    from minit2v.course import grading

    return grading.main_grade(args)


def add(verb) -> None:
    """Adds these verbs to the command line; `verb` is that of cli.build_parser."""
    one = verb(check)
    one.add_argument("chapter", type=int, metavar="NN", help="number of the chapter, 1 to 12")
    one.add_argument("notebook", nargs="?", type=Path, metavar="NOTEBOOK", help="(default: exercises/NN_*.ipynb)")
    one.add_argument("--json", action="store_true", help="print the answer as JSON")
    one = verb(hint)
    one.add_argument("exercise", metavar="NAME", help='such as "01.ring"')
    one = verb(solution)
    one.add_argument("exercise", metavar="NAME", help='such as "01.ring"')
    one.add_argument("--now", action="store_true", help="even if there are hints left")
    verb(progress)
    one = verb(grade)
    one.add_argument("folder", type=Path, metavar="FOLDER", help="one folder for each hand-in, with its notebooks")
    one.add_argument("-o", "--output", type=Path, default=Path("grades.csv"), metavar="FILE",
                     help="(default: grades.csv)")
    one.add_argument("--chapters", type=int, nargs="+", metavar="NN", help="only these (default: all)")
    one.add_argument("--seconds", type=float, default=30.0, metavar="S", help="limit for one exercise (default: 30)")
    one.add_argument("--memory", type=float, default=4.0, metavar="GB", help="limit for one exercise (default: 4)")
    one.add_argument("--jobs", type=int, default=2, metavar="N", help="exercises judged at the same time (default: 2)")
    one.add_argument("--vary", action="store_true", help="questions vary with the name of a hand-in's folder, which "
                     "each student has set as MINIT2V_STUDENT")
