from slidelens.steps import Steps, finish


def count(n, log=None):
    try:
        yield from range(n)
    finally:
        if log is not None:
            log.append("closed")
    return n * 10


def test_steps_are_those_of_the_generator_and_the_result_what_it_returns():
    steps = Steps(count(3))
    assert list(steps) == [0, 1, 2]
    assert steps.result == 30


def test_work_without_steps_has_a_result():
    assert finish(count(0)) == 0


def test_all_steps_are_taken_to_finish():
    log = []
    assert finish(count(4, log)) == 40
    assert log == ["closed"]


def test_work_that_is_left_in_the_middle_is_closed():
    def outer(log):
        steps = Steps(count(5, log))
        yield from steps
        return steps.result

    log = []
    work = outer(log)
    assert next(work) == 0
    work.close()
    assert log == ["closed"]
