"""From records to a page: aggregation, statistics, Markdown and HTML. Never imports torch."""
