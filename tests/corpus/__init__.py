"""Twenty thousand files of which each may be bad, made from real ones, and what becomes of them.

`python -m tests.corpus --files 20000 --seed 2026` writes them, scores them in one run and judges every row.

    pictures.py   what is in the files: drawn slices, and real ones where there are any
    tiffs.py      a TIFF writer that can write every layout, and lie in every field
    originals.py  sound files of all formats
    mutations.py  bytes changed, cut, grown and swapped, blindly or by the format's own structure
    oddities.py   files built to hurt: bombs, loops, giant sides, many frames
    cases.py      which file is made of what, by its number and the seed alone
    watch.py      memory, processes and open files of a run
    judge.py      what may and what may not become of a file
"""
