"""The trainer's machinery: schedule, checkpoint file, child process, publication; no Faust in here."""
