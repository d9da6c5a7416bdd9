Feature: A client can ask what would become of a task

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 10 ms
    And its queue holds 1 task
    And the pool "words" is ready

  @ORCHD-TASK-10 @ORCHD-ADM-3 @ORCHD-TASK-1
  Scenario: The promise without the task
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice asks what would become of:
      | prompt      | Once upon a time |
      | max_tokens  | 3                |
      | deadline_ms | 600000           |
    Then the answer is 200
    And the answer says:
      | dry_run                  | true  |
      | pool_id                  | words |
      | queue_position           | 0     |
      | placement.fallback       | false |
      | placement.pools.0.reason | only  |
    And the promised start is more than 5000 ms away
    And the deadline is likely met
    And the metric tasks_enqueued_total is 1
    When alice asks for "/v1/tasks"
    Then the answer lists "running"

  @ORCHD-TASK-10 @ORCHD-ADM-1 @ORCHD-ADM-3 @ORCHD-TASK-5
  Scenario: The refusal that the task would get
    When alice asks what would become of:
      | prompt      | Once upon a time |
      | max_tokens  | 3000             |
      | deadline_ms | 50               |
    Then the answer is 400 DEADLINE_UNMET
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice submits "waiting":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    And alice asks what would become of:
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the answer is 429 ADMISSION_REJECT
    And Retry-After is in whole seconds, rounded up, and X-Backoff-Ms says the same

  @ORCHD-TASK-10 @ORCHD-TASK-5
  Scenario: A refused deadline tells one that would do
    When alice asks what would become of:
      | prompt      | Once upon a time |
      | max_tokens  | 300              |
      | deadline_ms | 50               |
    Then the answer is 400 DEADLINE_UNMET
    When alice asks the same with the deadline that was told to be feasible
    Then the answer is 200

  @ORCHD-TASK-10 @ORCHD-TASK-3
  Scenario: An id that a dry run named is still free, and one that is taken tells its first promise
    When alice asks what would become of:
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
      | prompt     | Twice upon a time                    |
      | max_tokens | 3                                    |
    And alice submits "story":
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
      | prompt     | Once upon a time                     |
      | max_tokens | 3                                    |
    Then the answer is 202
    When alice asks what would become of:
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
      | prompt     | Once upon a time                     |
      | max_tokens | 3                                    |
    Then the answer is 200
    When alice asks what would become of:
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
      | prompt     | Twice upon a time                    |
      | max_tokens | 3                                    |
    Then the answer is 409 CONFLICT

  @ORCHD-TASK-10 @ORCHD-BUDG-1
  Scenario: A budget is told with every answer that it bounds
    When alice submits "bounded":
      | prompt     | Once upon a time            |
      | max_tokens | 3                           |
      | budget     | {"tokens":1000,"cost":2.5}  |
    Then the answer is 202
    And the header "X-Budget-Tokens-Remaining" is at most 997
    And the header "X-Budget-Cost-Remaining" is at most 3
    When alice asks what would become of:
      | prompt     | Once upon a time |
      | max_tokens | 300              |
      | budget     | {"tokens":100}   |
    Then the answer is 429 BUDGET_EXHAUSTED
    And the answer says:
      | policy_label | budget-tokens |
    When alice asks what would become of:
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the answer has no header "X-Budget-Tokens-Remaining"
