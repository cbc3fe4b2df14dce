"""The RecBole configuration that goes beside pre-split files."""

from __future__ import annotations

from collections.abc import Sequence

_TEMPLATE = """\
# For RecBole: data_path = the folder above this one, dataset = {dataset}, and this file among the config files.
{remarks}field_separator: "\\t"
USER_ID_FIELD: user_id
ITEM_ID_FIELD: item_id
{rating_field}{time_field}load_col:
  inter: [{columns}]{id_columns}
# The split is already made; RecBole takes exactly three files: train, valid, test. The clean test is a fourth file,
# {dataset}.clean_test.inter: name clean_test in place of test to have RecBole itself evaluate on it.
benchmark_filename: [train, valid, test]
# Every row counts as a positive, whatever its rating; ratings stay on their own scale for the reports.
val_interval: ~
user_inter_num_interval: ~
item_inter_num_interval: ~
threshold: ~
rm_dup_inter: ~
normalize_field: ~
normalize_all: False
# Rank all items for every user. RecBole asks for a split here, but with benchmark_filename it does not use it.
eval_args:
  split: {{"RS": [0.8, 0.1, 0.1]}}
  group_by: user
  order: TO
  mode: full
metrics: [Recall, NDCG, Precision, MRR, Hit]
topk: [3, 5, 10, 20]
valid_metric: Recall@20
"""


def recbole_yaml(
    dataset: str, *, timestamps: bool, ratings: bool = True, id_files: bool = False, remarks: Sequence[str] = ()
) -> bytes:
    """Return the text of ``<dataset>.yaml``: a complete RecBole configuration of the data, without any machine's paths.

    Args:
        dataset: the dataset's name, equal to its folder's.
        timestamps: whether the files have a timestamp column.
        ratings: whether they have a rating column.
        id_files: whether ``<dataset>.user`` and ``.item`` list all ids, those of no interaction in the three files too.
        remarks: further lines for the comment at its head.
    """
    columns = ["user_id", "item_id"] + ["rating"] * ratings + ["timestamp"] * timestamps
    id_columns = (
        "\n  # These two list every id, so that RecBole also numbers those that only the clean test, or nothing, has."
        "\n  user: [user_id]\n  item: [item_id]"
    )
    time_field = "TIME_FIELD: timestamp\n" if timestamps else ""
    text = _TEMPLATE.format(
        dataset=dataset,
        remarks="".join(f"# {line}\n" for line in remarks),
        rating_field="RATING_FIELD: rating\n" if ratings else "",
        time_field=time_field,
        id_columns=id_columns if id_files else "",
        columns=", ".join(columns),
    )
    return text.encode()
