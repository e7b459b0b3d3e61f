"""Where models and rows come from: hubs, buckets, claims, ConfigMaps, web servers."""
