"""Chat by itself: stateless, so any number of replicas may stand behind one address.

The coordinator mounts the same routes, so that by default one address serves everything.
"""

from services.chat import routes
from shared.web.app import create_app

app = create_app("chat", routes.router, lifespan=routes.lifespan)
