"""The whole server under virtual time: seeded network, disks, clocks and crashes, and what checks the outcome.

    scheduler   one heap of events, and an event loop per process on top of it
    disk        what a disk keeps when the power fails
    network     links between members and clients, and calls over them without sockets
    machine     one member: the shipping parts put together, killed and started again
    cluster     all of them

One seed gives everything: the order of events, what is lost, which faults come when. Nothing here sleeps or uses a
socket or a thread, and nothing depends on PYTHONHASHSEED.
"""
