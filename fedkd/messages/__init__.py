"""The message contract between server and silos: for every message its writer and its reader."""
