"""Where rows come from (sources), which split they fall into (splits), how they are kept (prepared), which are of step k (order)."""
