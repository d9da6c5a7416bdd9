Feature: A request can be sent again without being done twice

  Background:
    Given a pool "words" with 1 slot

  @ORCHD-TASK-3
  Scenario: The same request again gets the same answer and no second task
    When alice submits "story":
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
      | prompt     | Once upon a time                     |
      | max_tokens | 5                                    |
    And alice submits "story" again
    Then the answer is 202
    And it is the same answer as before
    When "story" is done
    And alice submits "story" again
    Then the answer is 202
    And it is the same answer as before
    And the metric tasks_enqueued_total is 1
    When alice asks for "/v1/tasks"
    Then the answer lists "story"

  @ORCHD-TASK-3
  Scenario: Order and layout of the fields do not make another request
    When alice submits "story":
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
      | prompt     | Once upon a time                     |
      | max_tokens | 5                                    |
      | metadata   | {"a":"1","b":"2"}                    |
    And alice submits the body:
      """
      { "metadata": {"b": "2", "a": "1"}, "max_tokens": 5.0,
        "prompt": "Once\u0020upon a time", "task_id": "0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e" }
      """
    Then the answer is 202
    And it is the same answer as before

  @ORCHD-TASK-3 @ORCHD-TASK-9
  Scenario: A client that lost its stream before it knew the task's id sends the same again
    Given its tokens take 5 ms
    When alice submits and streams "story":
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
      | prompt     | Once upon a time                     |
      | max_tokens | 20                                   |
    And "story" has received 3 tokens
    And the viewer "story" leaves
    And alice submits and streams "story" again
    Then the answer is 200
    And the stream "story" ends with end
    And the stream "story" has 20 tokens
    And the metric tasks_enqueued_total is 1

  @ORCHD-TASK-3
  Scenario: An id differs by its characters, not by their case
    When alice submits "story":
      | task_id    | 0B9F2F4E-6A1C-4D57-9A44-0C1F5F1C2D3E |
      | prompt     | Once upon a time                     |
      | max_tokens | 5                                    |
    And alice asks for "/v1/tasks/0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e"
    Then the answer is 200

  @ORCHD-TASK-3
  Scenario: Twenty times the same request at once are one task
    When alice submits "story" 20 times at once:
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
      | prompt     | Once upon a time                     |
      | max_tokens | 5                                    |
    Then "story" is done
    And the metric tasks_enqueued_total is 1
    And the metric tasks_started_total is 1

  @ORCHD-TASK-3 @ORCHD-DUR-2
  Scenario Outline: A restart forgets no request, whether its task is <state> by then
    Given its tokens take 10 ms
    And the pool "words" is ready
    When alice submits "story":
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
      | prompt     | Once upon a time                     |
      | max_tokens | <tokens>                             |
    And "story" is <state>
    And the daemon is stopped
    And the daemon starts again
    And alice submits "story" again
    Then the answer is 202
    And it is the same answer as before
    When alice submits "other":
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
      | prompt     | Twice upon a time                    |
      | max_tokens | <tokens>                             |
    Then the answer is 409 CONFLICT
    When bob submits "theft":
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
      | prompt     | Once upon a time                     |
      | max_tokens | <tokens>                             |
    Then the answer is 409 CONFLICT
    When alice asks for "/v1/tasks"
    Then the answer lists "story"

    Examples:
      | state   | tokens |
      | running | 3000   |
      | done    | 3      |
