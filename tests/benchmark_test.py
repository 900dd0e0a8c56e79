"""The benchmark runs, and tells its programs apart."""

import sys

import benchmark


def test_the_table_has_a_line_for_each_length_and_program(monkeypatch, capsys):
  sizes = {
    "layers": 3, "width": 16, "heads": 2, "vocabulary": 32, "batch": 2,
    "length": 8, "rounds": 1,
  }  # fmt: skip
  flags = [f"--{name}={value}" for name, value in sizes.items()]
  argv = ["benchmark.py", *flags, "--path_lengths", "1", "3"]
  monkeypatch.setattr(sys, "argv", argv)
  benchmark.main()
  lines = capsys.readouterr().out.splitlines()
  cells = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in lines
    if line.startswith("|")
  ]
  assert [(row[0], row[1]) for row in cells[2:]] == [
    (kept, program)
    for kept in ("1", "3")
    for program in ("dense-k", "gather", "cond")
  ]
  ratios = {row[1]: row[3] for row in cells[2:]}
  assert ratios["dense-k"] == "1.00x"
  assert all(float(row[2]) > 0 for row in cells[2:])
