"""Who does the jobs: takes them from the store, has the engine run them, and sees to what follows from their end.

| part | does |
|---|---|
| `Worker` | claims jobs, runs them, stores their results, says that it lives |
| `Chores` | gives lost jobs to others, forgets old ones, has usage added up |
| `WebhookSender` | tells whoever wants to know that a job has ended |

Any number of each may work on one store, in the server and beside it.
"""

from stockade.worker.chores import Chores
from stockade.worker.observing import Observer, Observers
from stockade.worker.webhooks import WebhookSender
from stockade.worker.worker import Worker

__all__ = ["Chores", "Observer", "Observers", "WebhookSender", "Worker"]
