def test_b(binary_line): print(binary_line.evaluation.metrics, binary_line.trained.threshold)
def test_m(multiclass_line): print(multiclass_line.evaluation.metrics)
def test_r(regression_line): print(regression_line.evaluation.metrics)
