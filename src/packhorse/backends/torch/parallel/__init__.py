"""Tensor parallelism: every layer cut over several devices, by transformers' own plan of the model (its tp_plan).

Each device has a process, a rank (rank.py), which holds its share of the weights and makes the same calls as all the
others. packhorse's own process is none of them: it never waits inside a collective, so that it notices a rank that died
or that ran out of memory alone, ends the others, and can start all of them anew; and torch.distributed's state, of
which a process has one, stays out of a user's program.

    ranks.py    started, told, heard, ended: what packhorse's process knows of the ranks
    rank.py     the work of one: `python -m packhorse.backends.torch.parallel.rank FD`
    group.py    torch.distributed in a rank: the group, and outputs that are rank 0's in all ranks
    fitting.py  what can be cut, and what goes with it
    shares.py   what of the weights is a rank's
    models.py   a model that gives values, and one that writes, whose forwards are the ranks'

What the ranks do next depends on what the model put out (which token, whether rows may be packed), and all of them
have to do the same. So outputs are broadcast from rank 0 after the last layer: they are equal to the bit by
construction, not because a library's sums happen to be. What depends on time (a stop, a trial that has seen enough) is
decided in packhorse's process, which answers every step of all ranks.
"""
