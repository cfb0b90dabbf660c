"""The shipped churn model's watch after a promotion."""

from deployments.spec import load_spec

LABELS_HOURS = 30 * 24


def test_the_watch_of_a_promotion_in_prod_is_not_over_before_labels_come():
    plan = load_spec("churn").spec.release.plan_for("prod")

    assert plan.rollback_hours > LABELS_HOURS
