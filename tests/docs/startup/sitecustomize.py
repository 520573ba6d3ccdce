"""Leads the programs that a page starts to the example service."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import example_service

if example_service.PORT_VARIABLE in os.environ:
    example_service.lead_to(int(os.environ[example_service.PORT_VARIABLE]))
