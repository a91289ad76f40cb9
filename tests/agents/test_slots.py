"""How many attempts a worker plays at once, and who may step aside for another."""

import threading

from meshgate_agents.worker.slots import MAX_AWAY, Absence, Slots

LONG = threading.Event()


def _free(slots: Slots, count: int) -> bool:
    """Whether so many may begin now."""
    begun = threading.Barrier(count + 1, timeout=5)
    stop = threading.Event()

    def hold() -> None:
        with slots.slot(stop):
            begun.wait()

    threads = [threading.Thread(target=hold, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        begun.wait()
    except threading.BrokenBarrierError:
        return False
    finally:
        for thread in threads:
            thread.join(10)
    return True


def test_who_waits_for_an_agent_lets_another_begin() -> None:
    """Two apps whose agents give each other tasks would else wait for each other for ever."""
    slots = Slots(1)
    with slots.slot(LONG), Absence(slots)():
        assert _free(slots, 1)


def test_a_run_leaves_one_slot_however_many_tasks_it_gave() -> None:
    """From the first wait to the last, and back when it is over."""
    slots = Slots(1)
    away = Absence(slots)
    with slots.slot(LONG):
        with away():
            with away():
                assert _free(slots, 1)
            assert _free(slots, 1)
        assert slots._free == 0
    assert slots._free == 1


def test_not_all_may_leave_at_once() -> None:
    """Each that waits keeps its program, so that leaving without end would fill the machine."""
    slots = Slots(1)
    assert [slots.leave() for _ in range(MAX_AWAY + 1)] == [True] * MAX_AWAY + [False]
    for _ in range(MAX_AWAY):
        slots.come_back()
    assert _free(slots, 1)
