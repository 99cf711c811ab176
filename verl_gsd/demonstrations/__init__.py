"""Expert and self demonstrations (DaGRPO's anchors): what may stand for one, and why not."""
