"""Tests that are about float32, or about numbers of networks drawn in it: not run under another default type."""

#: file -> names of its test functions
OF_FLOAT32 = {
    "tests/heads/test_heads.py": ("test_a_head_of_the_user_s_own_needs_no_more_than_start",),
    "tests/hypergradients/test_networks.py": ("test_exact_engines_on_networks",),
    "tests/learner/test_autocast.py": ("test_batch_statistics_of_bf16_forwards_move_float32_buffers",),
    "tests/learner/test_changed_settings.py": ("test_a_view_with_another_type_of_the_forwards_is_checked",),
    "tests/learner/test_walk.py": ("test_no_file_is_entered_more_than_twice",),
    "tests/methods/test_methods.py": ("test_gradients_and_predictions_are_those_of_a_plain_loop",),
    "tests/theory/bridge/test_text.py": ("test_features_are_encoded_once_and_go_through_episodes",),
    "tests/training/test_evaluation.py": (
        "test_episodes_that_diverge_count_as_wrong_where_that_is_asked_for",
        "test_a_control_that_reads_other_tasks_meets_divergence",
    ),
    "tests/training/test_moving_average.py": ("test_retraining_with_a_cosine_head_and_another_loss",),
    "tests/training/test_pretraining.py": (
        "test_one_group_is_ordinary_training",
        "test_calibration_is_the_mean_over_groups",
        "test_device_and_dtype_are_those_of_the_copy",
        "test_forwards_in_bfloat16_train_almost_the_same_in_float32",
    ),
    "tests/training/test_warm_start.py": (
        "test_validation_scores_what_training_has",
        "test_what_is_kept_predicts_exports_and_gives_ranks",
    ),
    "tests/updates/layers/test_dropout.py": ("test_masks_are_the_streams_of_the_counter",),
    "tests/updates/test_chains.py": ("test_under_autocast",),
    "tests/updates/test_frozen.py": ("test_frozen_complex_weights_are_part_of_a_backbone",),
    "tests/updates/test_peft_settings.py": ("test_an_adapter_on_a_part_of_what_is_shared_is_refused",),
}
