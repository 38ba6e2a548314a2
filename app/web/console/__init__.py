"""The pages and, behind each, the same facts as JSON: a module a page.

A module has records for what is shown, a function that reads them, and `add`, which puts page and API on a worker's
web. Acts are written once, in a function that both the form and the API call.
"""
