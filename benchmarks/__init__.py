"""One file per question; every figure beside the limit of the machine it was taken on."""
