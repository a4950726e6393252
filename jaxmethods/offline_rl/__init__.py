"""Offline reinforcement learning: a teacher from nothing but a dataset.

    data = make_transitions(flat, norm)
    method = iql.learner(IQLConfig(), steps=100_000)
    teacher = iql.teacher(final_state)

`iql` is cheap; `calql` is what the paper's teachers were made with.
"""
