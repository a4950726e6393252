"""Spider's exact set match and its four grades of hardness.

Two queries match where their clauses are equal as sets, whatever the literals, DISTINCT (outside of
nested queries) and the order of columns, conditions and tables; columns that a foreign key ties
count as one. Yu et al., "Spider", EMNLP 2018, arXiv 1809.08887; the rules are those of
https://github.com/taoyds/test-suite-sql-eval, `evaluation.py`. Exact match is syntax: queries that
do the same are often written differently, and `count(*)` of another table matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from jaxmethods.sql.parsing import COMPARISONS, EMPTY, Column, Names, Sql, Unparsable, Value, parse

Hardness: TypeAlias = Literal["easy", "medium", "hard", "extra"]
LEVELS: tuple[Hardness, ...] = ("easy", "medium", "hard", "extra")


def exact_match(
    predicted: str, gold: str, names: Names, foreign_keys: Mapping[str, str] | None = None
) -> bool:
    """Whether a prediction is the gold query, clause by clause.

    Args:
        predicted: a model's query.
        gold: the query that is right.
        names: table -> its columns, lower-case.
        foreign_keys: "table.column" -> the column that stands for it (`equivalent_columns`).

    Returns:
        Whether the two match; False where the prediction isn't understood.

    Raises:
        Unparsable: the gold query isn't understood.
    """
    keys = foreign_keys or {}
    try:
        own = parse(predicted, names)
    except Unparsable:
        own = EMPTY
    return match(compared(own, keys), compared(parse(gold, names), keys))


def equivalent_columns(
    columns: Sequence[str], foreign_keys: Sequence[tuple[int, int]]
) -> dict[str, str]:
    """For each column that a foreign key ties to others, the first of them.

    Args:
        columns: "table.column" of a database, in its order.
        foreign_keys: pairs of places in it. A pair joins the first group that has one of both.

    Returns:
        Column -> the first of its group; columns without a foreign key are left out.
    """
    groups: list[set[int]] = []
    for pair in foreign_keys:
        group = next((group for group in groups if group & set(pair)), None)
        if group is None:
            group = set()
            groups.append(group)
        group.update(pair)
    return {columns[place]: columns[min(group)] for group in groups for place in group}


def compared(tree: Sql, keys: Mapping[str, str]) -> Sql:
    """The tree without what isn't compared: literals, DISTINCT, which of two tied columns it is."""
    tables = {table for table in tree.tables if isinstance(table, str)}
    own = {column: first for column, first in keys.items() if column.split(".")[0] in tables}
    return _rename(_drop_literals(tree), own)


def match(predicted: Sql, gold: Sql) -> bool:
    """Whether two compared trees are equal as sets of clauses."""
    if not (
        _same(predicted.select[1], gold.select[1])
        and _same(predicted.where[::2], gold.where[::2])
        and set(predicted.where[1::2]) == set(gold.where[1::2])
        and _same(_bare(predicted.group), _bare(gold.group))
        and _same_groups(predicted, gold)
        and _same_order(predicted, gold)
        and keywords(predicted) == keywords(gold)
    ):
        return False
    for own, other in zip(_sets(predicted), _sets(gold), strict=True):
        if (own is None) != (other is None) or (own is not None and not match(own, other)):
            return False
    return not gold.tables or _same(predicted.tables, gold.tables)


def keywords(tree: Sql) -> set[str]:
    """The words by which a query is known."""
    conditions = _conditions(tree)
    compared_by = {COMPARISONS[condition[1]] for condition in conditions}
    found = {
        "where": tree.where,
        "group": tree.group,
        "having": tree.having,
        "order": tree.order,
        "limit": tree.limit,
        "except": tree.except_,
        "union": tree.union,
        "intersect": tree.intersect,
        "or": "or" in _connectives(tree),
        "not": any(condition[0] for condition in conditions),
        "in": "in" in compared_by,
        "like": "like" in compared_by,
    }
    words = {word for word, there in found.items() if there}
    return words | ({tree.order[0]} if tree.order else set())


def hardness(tree: Sql) -> Hardness:
    """Grades a gold query by its clauses, nested queries and repeated parts.

    Args:
        tree: the query as `parse` returns it, with its literals.

    Returns:
        "easy", "medium", "hard" or "extra".
    """
    parts, nested, others = _parts(tree), len(_nested(tree)), _others(tree)
    if parts <= 1 and others == 0 and nested == 0:
        return "easy"
    if nested == 0 and ((others <= 2 and parts <= 1) or (others < 2 and parts <= 2)):
        return "medium"
    if nested == 0 and ((others > 2 and parts <= 2) or (parts == 3 and others <= 2)):
        return "hard"
    return "hard" if parts <= 1 and others == 0 and nested <= 1 else "extra"


def _parts(tree: Sql) -> int:
    likes = [one for one in _conditions(tree) if COMPARISONS[one[1]] == "like"]
    clauses = [tree.where, tree.group, tree.order, tree.limit]
    joins = max(0, len(tree.tables) - 1)
    return sum(map(bool, clauses)) + joins + _connectives(tree).count("or") + len(likes)


def _others(tree: Sql) -> int:
    ordered = [column for value in (tree.order[1] if tree.order else []) for column in value[1:]]
    # A negated condition counts as an aggregate: its first entry is not zero either.
    units = [*tree.select[1], *tree.where[::2], *tree.group, *tree.having, *filter(None, ordered)]
    aggregates = [unit for unit in units if unit[0] != 0]
    several = [tree.select[1], tree.where, tree.group, aggregates]
    return sum(len(found) > 1 for found in several)


def _nested(tree: Sql) -> list[Sql]:
    sides = [side for condition in _conditions(tree) for side in condition[3:]]
    return [one for one in [*sides, *_sets(tree)] if isinstance(one, Sql)]


def _conditions(tree: Sql) -> list[Any]:
    return [*tree.joins[::2], *tree.where[::2], *tree.having[::2]]


def _connectives(tree: Sql) -> list[str]:
    return [*tree.joins[1::2], *tree.where[1::2], *tree.having[1::2]]


def _sets(tree: Sql) -> tuple[Any, Any, Any]:
    return tree.intersect, tree.except_, tree.union


def _same(own: Sequence[Any], other: Sequence[Any]) -> bool:
    """Equal up to order; entries hold lists, which have no hash."""
    left = list(other)
    for one in own:
        if one not in left:
            return False
        left.remove(one)
    return not left


def _bare(columns: Sequence[Column]) -> list[str]:
    return [column[1].split(".")[-1] for column in columns]


def _same_groups(own: Sql, other: Sql) -> bool:
    if not own.group or not other.group:
        return bool(own.group) == bool(other.group)
    names = [[column[1] for column in tree.group] for tree in (own, other)]
    return names[0] == names[1] and own.having == other.having


def _same_order(own: Sql, other: Sql) -> bool:
    if own.order is None or other.order is None:
        return own.order is other.order
    return own.order == other.order and own.limit == other.limit


def _drop_literals(tree: Sql) -> Sql:
    """Right sides that aren't queries are dropped; queries in FROM stay what they are."""

    def side(right: Any) -> Any:
        return _drop_literals(right) if isinstance(right, Sql) else None

    def each(conditions: Sequence[Any]) -> list[Any]:
        return [
            one if isinstance(one, str) else (*one[:3], side(one[3]), side(one[4]))
            for one in conditions
        ]

    return tree._replace(
        joins=each(tree.joins),
        where=each(tree.where),
        having=each(tree.having),
        intersect=side(tree.intersect),
        union=side(tree.union),
        except_=side(tree.except_),
    )


def _rename(tree: Sql, keys: Mapping[str, str]) -> Sql:
    """Columns under the names that stand for them, without DISTINCT; not in nested queries."""

    def column(one: Any) -> Any:
        return None if one is None else (one[0], keys.get(one[1], one[1]), None)

    def value(one: Value) -> Value:
        return one[0], column(one[1]), column(one[2])

    def each(conditions: Sequence[Any]) -> list[Any]:
        return [
            one if isinstance(one, str) else (*one[:2], value(one[2]), *one[3:])
            for one in conditions
        ]

    def further(query: Any) -> Any:
        return None if query is None else _rename(query, keys)

    select = [(aggregate, value(one)) for aggregate, one in tree.select[1]]
    return tree._replace(
        select=(None, select),
        joins=each(tree.joins),
        where=each(tree.where),
        group=[column(one) for one in tree.group],
        having=each(tree.having),
        order=tree.order and (tree.order[0], [value(one) for one in tree.order[1]]),
        intersect=further(tree.intersect),
        union=further(tree.union),
        except_=further(tree.except_),
    )
