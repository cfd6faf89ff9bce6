-- Run once by PostgreSQL's image, as the owner of `mlflow`: users and their rights are kept apart from the runs.
create database mlflow_accounts;
