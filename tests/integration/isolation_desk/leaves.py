"""A program that leaves a process behind and waits to be killed."""

import time

from attacks import outlive

outlive("out/outlives-leaver")
time.sleep(600)
