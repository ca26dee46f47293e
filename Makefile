# make demo: a sentence becomes a clip · make test: runs every test · make lab: opens the notebooks
# make notebooks: builds the notebooks from the text files beside them · make nbgrader: the exercises as a course for it
PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test lab notebooks nbgrader
demo: $(VENV)/ready
	$(VENV)/bin/minit2v generate "a red circle moves right" -o clip.mp4 -o clip.gif -o clip.png
test: $(VENV)/ready-test
	$(VENV)/bin/python -m pytest -q
lab: $(VENV)/ready-course
	$(VENV)/bin/jupyter lab --LabApp.default_url=/lab/tree/notebooks
notebooks: $(VENV)/ready-course
	$(VENV)/bin/python -m minit2v.course.build
nbgrader: $(VENV)/ready-test
	$(VENV)/bin/python -m minit2v.course.nbgrader build/nbgrader

NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 10) and f'this is Python {sys.version.split()[0]}, 3.10 or \
newer is needed; name another by make PYTHON=python3.12 and the like')

# The environment: made once, again if it has no pip (a venv that failed leaves such a one), filled again when
# pyproject.toml has changed.
$(VENV)/ready-test: EXTRAS = [test]
$(VENV)/ready-course: EXTRAS = [course]
$(VENV)/ready $(VENV)/ready-test $(VENV)/ready-course: pyproject.toml
	$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { $(PYTHON) -c "$(NEW_ENOUGH)" && $(PYTHON) -m venv $(VENV); }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$(EXTRAS)"
	touch $@
