from lors_cli.training.collate import collate


def test_pads_on_the_right_without_learning_the_padding() -> None:
    batch = collate([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}], padding=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_equal_lengths_need_no_mask() -> None:
    assert "attention_mask" not in collate([{"input_ids": [1, 2], "labels": [1, 2]}] * 2, padding=0)
