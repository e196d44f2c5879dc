"""A process to be frozen: holds a lock, refreshes it and appends under it without pause, and says when it was refused.

Each line of stdin is one run: the seconds of the lease. It says `held TOKEN`, then `lost REFRESH APPEND` with the codes
of the first refresh and of the first fenced append that were refused after it.
"""

import sys

import httpx

RESOURCE = "plan.md"
AGENT = "ann"


def hold(http: httpx.Client, ttl_seconds: float) -> None:
    asked = {"resource": RESOURCE, "agent_id": AGENT, "ttl_seconds": ttl_seconds, "wait_seconds": 30}
    lock = http.post("/locks", json=asked).raise_for_status().json()
    unit = {"context_id": "plan", "agent_id": AGENT, "fence": {"resource": RESOURCE, "token": lock["fencing_token"]}}
    say(f"held {lock['fencing_token']}")
    refreshed = ""
    while True:
        appended = http.post("/workunit", json=unit)
        if appended.status_code != 201:
            say(f"lost {refreshed or '-'} {appended.status_code} {appended.json()['code']}")
            return
        refresh = http.patch(f"/locks/{RESOURCE}", json={"lock_id": lock["lock_id"], "agent_id": AGENT})
        if refresh.status_code != 200:
            refreshed = refresh.json()["code"]


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    with httpx.Client(base_url=sys.argv[1], timeout=60) as client:
        for line in sys.stdin:
            hold(client, float(line))
